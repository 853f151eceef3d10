//! How large directories are.

use std::{fs, io, path::Path};

/// The bytes of all files below a directory; links are not followed. What is gone, also meanwhile, counts nothing.
///
/// # Errors
/// When something that is there cannot be read.
pub fn size_of(directory: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut size = 0;
    for entry in entries {
        let entry = entry?;
        let of_entry = match entry.file_type() {
            Ok(kind) if kind.is_dir() => size_of(&entry.path()),
            Ok(_) => entry.metadata().map(|metadata| metadata.len()),
            Err(error) => Err(error),
        };
        size += match of_entry {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            size => size?,
        };
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_count_and_links_do_not_lead_away() {
        let (dir, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(away.path().join("large"), vec![0; 5000]).unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("one"), "12345").unwrap();
        fs::write(dir.path().join("a/b/two"), "123").unwrap();
        assert_eq!(size_of(dir.path()).unwrap(), 8);
        std::os::unix::fs::symlink(away.path(), dir.path().join("link")).unwrap();
        assert!(size_of(dir.path()).unwrap() < 1000);
        assert_eq!(size_of(&dir.path().join("none")).unwrap(), 0);
    }
}
