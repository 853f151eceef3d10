//! What an SSH client asks to be run. No shell ever sees it: quotes are taken off as a shell would, and nothing else has a meaning.

use crate::{domain::EnvRef, git::settings::Service};

/// The longest command line that is looked at, in bytes.
pub const MAX_COMMAND: usize = 128 * 1024;
/// The most words of a command line.
const MAX_WORDS: usize = 1024;

/// A request that can be acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// One end of git's wire protocol.
    Git { service: Service, env: EnvRef },
    /// A command of Berth's own; at least one word.
    Command(Vec<String>),
    /// Nothing but blanks.
    Empty,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    #[error("the command line is longer than {} KiB", MAX_COMMAND / 1024)]
    TooLong,
    #[error("the command line has more than {MAX_WORDS} words")]
    TooManyWords,
    #[error("the command line is not UTF-8 text, or has a NUL in it")]
    NotText,
    #[error("a quote in the command line is not closed")]
    Unclosed,
    #[error("git {0} is not offered here; clone the environment's repository instead")]
    Service(String),
    #[error("{service} needs exactly one path, as in {service} 'acme/shop/dev'")]
    OnePath { service: String },
    #[error("{path:?} is not the path of an environment: {reason}")]
    Path { path: String, reason: String },
}

/// Reads a command line.
pub fn parse(line: &[u8]) -> Result<Request, ExecError> {
    if line.len() > MAX_COMMAND {
        return Err(ExecError::TooLong);
    }
    let text = std::str::from_utf8(line).map_err(|_| ExecError::NotText)?;
    if text.contains('\0') {
        return Err(ExecError::NotText);
    }
    let words = split(text)?;
    let Some(first) = words.first() else { return Ok(Request::Empty) };
    let (service, arguments) = match (first.as_str(), words.get(1)) {
        ("git", Some(second)) => (second.as_str(), &words[2..]),
        (first, _) => match first.strip_prefix("git-") {
            Some(service) => (service, &words[1..]),
            None => return Ok(Request::Command(words)),
        },
    };
    let kind = match service {
        "receive-pack" => Service::ReceivePack,
        "upload-pack" => Service::UploadPack,
        other => return Err(ExecError::Service(excerpt(other))),
    };
    let [path] = arguments else { return Err(ExecError::OnePath { service: format!("git-{service}") }) };
    let env = EnvRef::from_remote_path(path)
        .map_err(|error| ExecError::Path { path: excerpt(path), reason: error.to_string() })?;
    Ok(Request::Git { service: kind, env })
}

fn excerpt(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Splits into words at blanks, and takes off single quotes, double quotes and backslashes as a POSIX shell does (Shell Command
/// Language, 2.2), with no expansion of any kind.
fn split(text: &str) -> Result<Vec<String>, ExecError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(ExecError::Unclosed)? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(chars.next().ok_or(ExecError::Unclosed)?),
            c => word.get_or_insert_default().push(c),
        }
        if words.len() > MAX_WORDS {
            return Err(ExecError::TooManyWords);
        }
    }
    words.extend(word);
    if words.len() > MAX_WORDS { Err(ExecError::TooManyWords) } else { Ok(words) }
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), ExecError> {
    loop {
        match chars.next().ok_or(ExecError::Unclosed)? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(ExecError::Unclosed)? {
                c @ ('"' | '\\' | '$' | '`') => word.push(c),
                '\n' => {}
                c => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Result<Request, ExecError> {
        Ok(Request::Command(words.iter().map(|word| (*word).to_owned()).collect()))
    }

    #[test]
    fn words_are_split_as_a_shell_would_and_nothing_is_expanded() {
        let table: [(&str, &[&str]); 10] = [
            ("ps  acme/shop/dev", &["ps", "acme/shop/dev"]),
            ("config set e 'A=b c' \"D=e f\"", &["config", "set", "e", "A=b c", "D=e f"]),
            (r#"run e -- sh -c "echo \"a\" '\$b' \n""#, &["run", "e", "--", "sh", "-c", r#"echo "a" '$b' \n"#]),
            ("a\\ b ''", &["a b", ""]),
            (
                "ps; rm -rf / & `id` $(id) $HOME | x > y",
                &["ps;", "rm", "-rf", "/", "&", "`id`", "$(id)", "$HOME", "|", "x", ">", "y"],
            ),
            ("ps\nrm", &["ps", "rm"]),
            ("'a\nb'", &["a\nb"]),
            ("it\\'s", &["it's"]),
            ("é ü", &["é", "ü"]),
            ("*.txt ~", &["*.txt", "~"]),
        ];
        for (line, want) in table {
            assert_eq!(parse(line.as_bytes()), command(want), "{line:?}");
        }
        for line in ["'a", "\"a", "a\\", "\"a\\"] {
            assert_eq!(parse(line.as_bytes()), Err(ExecError::Unclosed), "{line:?}");
        }
        assert_eq!(parse(b" \n"), Ok(Request::Empty));
        assert_eq!(parse(b"a\0b"), Err(ExecError::NotText));
        assert_eq!(parse(b"\xff"), Err(ExecError::NotText));
        assert_eq!(parse(&vec![b'a'; MAX_COMMAND + 1]), Err(ExecError::TooLong));
        assert_eq!(parse("a ".repeat(MAX_WORDS + 1).as_bytes()), Err(ExecError::TooManyWords));
    }

    #[test]
    fn git_services_by_path() {
        let env: EnvRef = "acme/shop/dev".parse().unwrap();
        for path in ["'acme/shop/dev'", "'/acme/shop/dev.git'", "acme/shop/dev", "\"/acme/shop/dev\""] {
            let want = Ok(Request::Git { service: Service::ReceivePack, env: env.clone() });
            assert_eq!(parse(format!("git-receive-pack {path}").as_bytes()), want, "{path}");
            assert_eq!(parse(format!("git receive-pack {path}").as_bytes()), want, "{path}");
            let want = Ok(Request::Git { service: Service::UploadPack, env: env.clone() });
            assert_eq!(parse(format!("git-upload-pack {path}").as_bytes()), want, "{path}");
        }
    }

    #[test]
    fn attack_paths_and_options_are_refused() {
        for line in [
            "git-upload-archive 'acme/shop/dev'",
            "git-shell",
            "git-receive-pack",
            "git-receive-pack a b",
            "git-receive-pack '--exec=touch /tmp/x'",
            "git-upload-pack --upload-pack=/bin/sh 'acme/shop/dev'",
            "git-upload-pack '--timeout=1'",
            "git-upload-pack 'acme/shop/dev'; id",
            "git-upload-pack 'acme/shop/dev\nid'",
            "git-upload-pack '../../etc/passwd'",
            "git-upload-pack '/../acme/shop/dev'",
            "git-upload-pack 'acme/shop/../../x'",
            "git-upload-pack '/etc/passwd'",
            "git-upload-pack 'acme/shop/dev.git/..'",
            "git-upload-pack '.'",
            "git-upload-pack ''",
            "git-upload-pack 'ACME/shop/dev'",
            "git-upload-pack '~/acme/shop/dev'",
            "git --exec-path=/tmp x",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line:?} was taken");
        }
    }
}
