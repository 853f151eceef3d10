//! The server's Ed25519 host key, made once.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use anyhow::{Context, Result, bail};
use russh::keys::{
    PrivateKey,
    ssh_key::{
        LineEnding,
        private::{Ed25519Keypair, KeypairData},
    },
};

/// The host key in `file` (`DATA/keys/host_ed25519`), made and synced to disk when there is none.
///
/// A key that cannot be read is an error, never replaced: a new host key would make every client refuse to connect.
pub fn host_key(file: &Path) -> Result<PrivateKey> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return make(file),
        Err(error) => return Err(error).with_context(|| format!("the SSH host key {} cannot be read", file.display())),
    };
    let mode = fs::metadata(file)?.mode();
    if mode & 0o077 != 0 {
        bail!(
            "the SSH host key {0} can be read by others (mode {1:04o}); do `chmod 600 {0}`",
            file.display(),
            mode & 0o7777
        );
    }
    PrivateKey::from_openssh(&bytes).with_context(|| {
        let file = file.display();
        format!("{file} is not an OpenSSH private key; restore it from a backup, or remove it to have a new one made")
    })
}

fn make(file: &Path) -> Result<PrivateKey> {
    let directory = file.parent().context("the SSH host key needs a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let pair = Ed25519Keypair::from_seed(&rand::random());
    let key = PrivateKey::new(KeypairData::Ed25519(pair), "berth")?;
    let text = key.to_openssh(LineEnding::LF)?;
    let temporary = file.with_extension("new");
    let write = || -> std::io::Result<()> {
        // Left behind by a server that was killed here; it was never used.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&temporary, file)?;
        fs::File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("cannot write the SSH host key {}", file.display()))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_host_key_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys/host_ed25519");
        let first = host_key(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let again = host_key(&file).unwrap();
        assert_eq!(first.public_key(), again.public_key());
        let other = host_key(&directory.path().join("other")).unwrap();
        assert_ne!(first.public_key(), other.public_key());
    }

    #[test]
    fn a_damaged_or_open_host_key_is_refused_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("host");
        fs::write(&file, "junk").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(host_key(&file).unwrap_err().to_string().contains("is not an OpenSSH private key"));
        assert_eq!(fs::read(&file).unwrap(), b"junk");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(host_key(&file).unwrap_err().to_string().contains("chmod 600"));
    }
}
