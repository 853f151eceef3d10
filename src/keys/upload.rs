//! Public keys as people upload them.

use russh::keys::{
    Algorithm, HashAlg, PublicKey,
    ssh_key::{Fingerprint, public::KeyData},
};

/// The largest upload that is looked at, in bytes; a few hundred keys.
pub const MAX_UPLOAD: usize = 64 * 1024;
/// The most keys in one upload.
pub const MAX_KEYS: usize = 100;
/// The smallest RSA modulus that is taken, in bits.
const MIN_RSA_BITS: u32 = 2048;
/// Longest comment that is kept, in characters.
const MAX_COMMENT: usize = 100;

/// A public key that may be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedKey {
    /// `SHA256:…` as OpenSSH prints it.
    pub fingerprint: String,
    /// OpenSSH one-line form without the comment.
    pub openssh: String,
    /// As in `ssh-ed25519`.
    pub algorithm: String,
    /// Without control characters; may be empty.
    pub comment: String,
}

/// Why an upload was refused; nothing of it is registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "no key was given; pass a public key on standard input, as in `… upload-key alice < ~/.ssh/id_ed25519.pub`"
    )]
    Empty,
    #[error("the upload is larger than {} KiB; a public key is one short line", MAX_UPLOAD / 1024)]
    TooLarge,
    #[error("the upload has more than {MAX_KEYS} keys; upload them in parts")]
    TooMany,
    #[error(
        "this is a PRIVATE key: never send it to anyone. Upload the public half, the file that ends in .pub \
         (`ssh-keygen -y -f KEYFILE` prints it). Since it has left your machine, consider making a new key"
    )]
    Private,
    #[error("line {line}: this is a certificate; upload the plain public key instead (the .pub file without -cert)")]
    Certificate { line: usize },
    #[error(
        "line {line}: options before the key ({option:?}) are not supported; upload the line from the key type on, as in `ssh-ed25519 AAAA…`"
    )]
    Options { line: usize, option: String },
    #[error(
        "the key is in {format} format; convert it with `ssh-keygen -i -m {convert} -f FILE` and upload what that prints"
    )]
    OtherFormat { format: &'static str, convert: &'static str },
    #[error("line {line}: {algorithm} keys are not accepted; make a new one with `ssh-keygen -t ed25519`")]
    Algorithm { line: usize, algorithm: String },
    #[error(
        "line {line}: the RSA key has {bits} bits, and {MIN_RSA_BITS} are the least; make a new one with `ssh-keygen -t ed25519`"
    )]
    WeakRsa { line: usize, bits: u32 },
    #[error("line {line}: not an SSH public key ({excerpt:?}); it looks like `ssh-ed25519 AAAA… comment`")]
    Junk { line: usize, excerpt: String },
}

/// Fingerprint of a key, `SHA256:…` as OpenSSH prints it.
pub fn fingerprint(key: &PublicKey) -> String {
    Fingerprint::new(HashAlg::Sha256, key.key_data()).to_string()
}

/// The keys in an upload: OpenSSH lines, with LF or CRLF ends; blank lines and `#` comments are passed over, and a key that comes
/// twice counts once. One bad line refuses the whole upload.
pub fn parse_upload(bytes: &[u8]) -> Result<Vec<ParsedKey>, KeyError> {
    if bytes.len() > MAX_UPLOAD {
        return Err(KeyError::TooLarge);
    }
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    refuse_other_formats(text)?;
    let mut keys: Vec<ParsedKey> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = parse_line(index + 1, line)?;
        if keys.iter().all(|known| known.fingerprint != key.fingerprint) {
            if keys.len() == MAX_KEYS {
                return Err(KeyError::TooMany);
            }
            keys.push(key);
        }
    }
    if keys.is_empty() { Err(KeyError::Empty) } else { Ok(keys) }
}

fn refuse_other_formats(text: &str) -> Result<(), KeyError> {
    if text.contains("PRIVATE KEY-----") || text.contains("PuTTY-User-Key-File") {
        return Err(KeyError::Private);
    }
    let formats = [
        ("---- BEGIN SSH2 PUBLIC KEY ----", "RFC 4716", "RFC4716"),
        ("-----BEGIN PUBLIC KEY-----", "PEM (PKCS#8)", "PKCS8"),
        ("-----BEGIN RSA PUBLIC KEY-----", "PEM (PKCS#1)", "PEM"),
    ];
    for (mark, format, convert) in formats {
        if text.contains(mark) {
            return Err(KeyError::OtherFormat { format, convert });
        }
    }
    Ok(())
}

fn parse_line(line: usize, text: &str) -> Result<ParsedKey, KeyError> {
    let first = text.split_ascii_whitespace().next().unwrap_or_default();
    if first.contains("-cert-v") {
        return Err(KeyError::Certificate { line });
    }
    let junk = || KeyError::Junk { line, excerpt: excerpt(text) };
    if !is_key_type(first) {
        // `command="…" ssh-ed25519 AAAA…`, as in an authorized_keys file.
        let has_key = text.split_ascii_whitespace().skip(1).any(is_key_type);
        return Err(if has_key { KeyError::Options { line, option: excerpt(first) } } else { junk() });
    }
    let parts: Vec<&str> = text.split_ascii_whitespace().collect();
    let body = parts.get(1).ok_or_else(junk)?;
    let key = PublicKey::from_openssh(&format!("{first} {body}")).map_err(|_| junk())?;
    check_algorithm(line, &key)?;
    let openssh = key.to_openssh().map_err(|_| junk())?.trim().to_owned();
    Ok(ParsedKey {
        fingerprint: fingerprint(&key),
        openssh,
        algorithm: key.algorithm().as_str().to_owned(),
        comment: clean(&parts[2..].join(" "), MAX_COMMENT),
    })
}

fn is_key_type(word: &str) -> bool {
    const PREFIXES: [&str; 3] = ["ssh-", "ecdsa-sha2-", "sk-"];
    PREFIXES.iter().any(|prefix| word.starts_with(prefix)) && !word.contains('=') && !word.contains('"')
}

fn check_algorithm(line: usize, key: &PublicKey) -> Result<(), KeyError> {
    if let KeyData::Rsa(rsa) = key.key_data() {
        let bits = rsa.key_size();
        return if bits < MIN_RSA_BITS { Err(KeyError::WeakRsa { line, bits }) } else { Ok(()) };
    }
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => Ok(()),
        other => Err(KeyError::Algorithm { line, algorithm: other.as_str().to_owned() }),
    }
}

fn excerpt(text: &str) -> String {
    clean(text, 40)
}

/// Without control characters (a comment is printed to other people's terminals), and at most `limit` characters.
fn clean(text: &str, limit: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(limit).collect()
}

#[cfg(test)]
mod tests;
