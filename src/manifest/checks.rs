//! What single texts of a manifest must look like.

use super::units::Refusal;

/// Longest command, in bytes: well below what one argument of a process may be.
pub const MAX_COMMAND: usize = 32 * 1024;
/// Longest value of a build variable, in bytes.
pub const MAX_VALUE: usize = 32 * 1024;

pub(super) const VARIABLE_PATTERN: &str = "^[A-Za-z_][A-Za-z0-9_]{0,127}$";
pub(super) const HEALTH_PATH_PATTERN: &str = "^/[!-\"$-~]{0,1023}$";
pub(super) const BUILDPACK_PATTERN: &str = "^([a-z][a-z0-9-]{0,29}|https://[A-Za-z0-9.:-]+/[!-?A-~]{1,500})$";
pub(super) const AUTH_PATTERN: &str = "^bt1\\.[A-Za-z0-9_-]{1,512}\\.[A-Za-z0-9_-]{86}$";
pub(super) const DOMAIN_PATTERN: &str =
    "^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\\.)+[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$";
pub(super) const ROOT_PATTERN: &str = "^[^/\\\\\\s]([^\\\\]*[^\\\\\\s])?$";

type Check<T> = Result<T, Refusal>;

/// A command line for the shell in the container, without the blanks around it.
pub(super) fn command(text: &str) -> Check<String> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Refusal::new("is empty", "write the command, as in `node server.js`"));
    }
    if text.len() > MAX_COMMAND {
        let message = format!("has {} bytes; at most {MAX_COMMAND} are taken", text.len());
        return Err(Refusal::new(message, "put it into a script in the repository and run that"));
    }
    no_nul(text)?;
    Ok(text.to_owned())
}

fn no_nul(text: &str) -> Check<()> {
    if text.contains('\0') {
        return Err(Refusal::new("contains a NUL character", "no program can be given one; remove it"));
    }
    Ok(())
}

/// Name of an environment variable.
pub(super) fn variable_name(name: &str) -> Check<()> {
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.len() <= 128
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !valid {
        let advice = "use letters, digits and `_`, not beginning with a digit, as in `NODE_ENV`";
        return Err(Refusal::new("is not a name for an environment variable", advice));
    }
    Ok(())
}

/// Value of a build variable.
pub(super) fn variable_value(text: &str) -> Check<String> {
    if text.len() > MAX_VALUE {
        let message = format!("has {} bytes; at most {MAX_VALUE} are taken", text.len());
        return Err(Refusal::new(message, "put it into a file in the repository"));
    }
    no_nul(text)?;
    Ok(text.to_owned())
}

/// A directory of the repository: relative, `/`-separated, normal. `.` and a trailing slash are dropped.
pub(super) fn root(text: &str) -> Check<String> {
    let refuse =
        |message: &str| Err(Refusal::new(message, "write a directory of the repository, as in `services/web`"));
    if text.is_empty() || text.len() > 1024 || text.starts_with('/') {
        return refuse("must be a path within the repository");
    }
    if text.contains(['\\', '\0', '\n', '\r']) || text.trim() != text {
        return refuse("contains a character that does not belong there");
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return refuse("must not leave the repository with `..`");
    }
    if parts.iter().any(|part| part.eq_ignore_ascii_case(".git")) {
        return refuse("must not point into `.git`");
    }
    Ok(parts.join("/"))
}

/// A buildpack: its name, or the https URL of a git repository (whether it may be used is the operator's word).
pub(super) fn buildpack(text: &str) -> Check<String> {
    let name = |text: &str| {
        text.len() <= 30
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    let url = |text: &str| {
        let Some((host, path)) = text.strip_prefix("https://").and_then(|rest| rest.split_once('/')) else {
            return false;
        };
        !host.is_empty()
            && host.chars().all(|c| c.is_ascii_alphanumeric() || ".:-".contains(c))
            && (1..=500).contains(&path.len())
            && path.chars().all(|c| c.is_ascii_graphic() && c != '@')
    };
    if name(text) || url(text) {
        return Ok(text.to_owned());
    }
    let advice = "write a name such as `nodejs`, or `https://host/path/to/repository.git`";
    Err(Refusal::new("is neither the name of a buildpack nor the https URL of one", advice))
}

/// Path of a health check.
pub(super) fn health_path(text: &str) -> Check<String> {
    let valid = text.starts_with('/') && text.len() <= 1024 && text.chars().all(|c| c.is_ascii_graphic() && c != '#');
    if !valid {
        let advice = "write a path that begins with `/`, without blanks, as in `/healthz`";
        return Err(Refusal::new("is not a path to ask for", advice));
    }
    Ok(text.to_owned())
}

/// A project token by its shape alone; its signature is checked by whoever holds the key.
pub(super) fn auth(text: &str) -> Check<String> {
    let token = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let mut parts = text.split('.');
    let shape = [parts.next(), parts.next(), parts.next(), parts.next()];
    if let [Some("bt1"), Some(payload), Some(signature), None] = shape
        && (1..=512).contains(&payload.len())
        && signature.len() == 86
        && payload.chars().chain(signature.chars()).all(token)
    {
        return Ok(text.to_owned());
    }
    let advice = "copy the token that `apps create` printed (`apps info` prints it again), or remove the line";
    Err(Refusal::new("is not a project token", advice))
}

/// A host name, in lower case.
pub(super) fn domain(text: &str) -> Check<String> {
    const MESSAGE: &str = "is not a host name";
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        return Err(Refusal::new(MESSAGE, format!("leave out `{scheme}://`: write `{host}`")));
    }
    if text.contains('*') {
        return Err(Refusal::new(
            "is a wildcard; those are not supported",
            "list each host name, as in `shop.example.com`",
        ));
    }
    if text.contains(':') {
        return Err(Refusal::new(MESSAGE, "leave out the port, as in `shop.example.com`"));
    }
    if !text.is_ascii() {
        let advice = "write it in its ASCII form, as in `xn--mnchen-3ya.example`";
        return Err(Refusal::new("contains letters beyond ASCII", advice));
    }
    let lower = text.to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let labels: Vec<&str> = lower.split('.').collect();
    // An address has a last label that begins with a digit; no top-level domain does.
    let named = labels.last().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_lowercase()));
    if labels.len() < 2 || lower.len() > 253 || !named || !labels.iter().all(|text| label(text)) {
        return Err(Refusal::new(MESSAGE, "write a full name such as `shop.example.com`"));
    }
    Ok(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees(check: fn(&str) -> bool, pattern: &str, texts: &[(bool, &str)]) {
        let pattern = regex::Regex::new(pattern).unwrap();
        for (taken, text) in texts {
            assert_eq!(check(text), *taken, "{text:?}");
            assert_eq!(pattern.is_match(text), *taken, "{text:?} by the pattern {pattern}");
        }
    }

    #[test]
    fn texts_taken_and_refused_as_the_patterns_say() {
        let long = format!("{}.example", "a".repeat(64));
        agrees(
            |text| domain(text).is_ok(),
            DOMAIN_PATTERN,
            &[
                (true, "shop.example.com"),
                (true, "SHOP.Example.COM"),
                (true, "a-1.xn--p1ai"),
                (false, "*.example.com"),
                (false, "https://shop.example.com"),
                (false, "shop.example.com:80"),
                (false, "localhost"),
                (false, "10.0.0.1"),
                (false, "shop..com"),
                (false, "shop.example.com."),
                (false, "-a.example"),
                (false, "a_b.example"),
                (false, "münchen.example"),
                (false, &long),
                (false, ""),
            ],
        );
        agrees(
            |text| buildpack(text).is_ok(),
            BUILDPACK_PATTERN,
            &[
                (true, "nodejs"),
                (true, "https://git.example/packs/go.git#v2"),
                (false, "http://git.example/x"),
                (false, "https://user:secret@git.example/x"),
                (false, "https://git.example/x@y"),
                (false, "https://git.example/"),
                (false, "ext::sh -c id"),
                (false, "--upload-pack=x"),
                (false, "../nodejs"),
                (false, "Nodejs"),
            ],
        );
        agrees(
            |text| health_path(text).is_ok(),
            HEALTH_PATH_PATTERN,
            &[
                (true, "/"),
                (true, "/healthz?full=1"),
                (false, "healthz"),
                (false, "/a b"),
                (false, "/a#b"),
                (false, "/é"),
            ],
        );
        agrees(
            |name| variable_name(name).is_ok(),
            VARIABLE_PATTERN,
            &[
                (true, "NODE_ENV"),
                (true, "_x1"),
                (false, "1X"),
                (false, "A-B"),
                (false, ""),
                (false, "A=B"),
                (false, "Ä"),
            ],
        );
        let token = format!("bt1.e30.{}", "A".repeat(86));
        agrees(
            |text| auth(text).is_ok(),
            AUTH_PATTERN,
            &[(true, &token), (false, "bt1.…"), (false, "bt2.a.b"), (false, "bt1.a.b"), (false, "")],
        );
    }

    #[test]
    fn domains_are_lower_cased() {
        assert_eq!(domain("Shop.Example.COM").unwrap(), "shop.example.com");
    }

    #[test]
    fn roots_stay_in_the_repository() {
        for (given, want) in
            [("services/web", "services/web"), ("./web/", "web"), (".", ""), ("a//b", "a/b"), ("a b/ä", "a b/ä")]
        {
            assert_eq!(root(given).unwrap(), want);
        }
        for text in ["..", "a/../b", "/etc", "", "a\\b", " a", "a\n", ".git/hooks", "x/.GIT"] {
            assert!(root(text).is_err(), "{text:?} was taken");
        }
    }
}
