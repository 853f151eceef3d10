//! Keys that are made at the first start and kept.

use std::{fs, io::Write, os::unix::fs::PermissionsExt, path::Path};

use anyhow::Context;

use crate::token::TokenKey;

/// The key that signs project tokens, in `file`.
pub(super) fn token_key(file: &Path) -> anyhow::Result<TokenKey> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let bytes = TokenKey::generate()?;
            write_secret(file, &bytes)?;
            bytes
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    TokenKey::from_pkcs8(&bytes).with_context(|| format!("{} holds no key; restore it from a backup", file.display()))
}

/// Writes a file that only its owner may read, whole or not at all, durably.
fn write_secret(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let directory = file.parent().context("a key file has no directory")?;
    let mut temporary = tempfile::NamedTempFile::new_in(directory)?;
    temporary.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(file)?;
    fs::File::open(directory)?.sync_all()?;
    Ok(())
}
