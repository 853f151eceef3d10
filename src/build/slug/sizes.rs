//! How large the slug is, and what makes it so.

use std::collections::BTreeMap;

/// Folders, and files beside them, that are told apart; the rest is counted to the folder above.
const FOLDERS: usize = 20_000;
/// How many of them a message names.
const NAMED: usize = 5;

/// Bytes by folder, two levels deep, and by file at the top.
#[derive(Debug, Default)]
pub struct Sizes {
    total: u64,
    /// A folder's name ends with a slash.
    folders: BTreeMap<Vec<u8>, u64>,
}

impl Sizes {
    /// Counts a file.
    pub fn add(&mut self, path: &[u8], size: u64) {
        self.total = self.total.saturating_add(size);
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut ends: Vec<usize> = slashes.map(|(at, _)| at + 1).take(2).collect();
        if ends.is_empty() {
            ends.push(path.len());
        }
        for end in ends {
            let known = self.folders.len() < FOLDERS || self.folders.contains_key(&path[..end]);
            if known {
                let folder = self.folders.entry(path[..end].to_vec()).or_default();
                *folder = folder.saturating_add(size);
            }
        }
    }

    /// Bytes of all files.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The largest folders and files with their sizes, largest first, as text.
    pub fn largest(&self) -> Vec<String> {
        let mut folders: Vec<_> = self.folders.iter().collect();
        folders.sort_by(|one, two| two.1.cmp(one.1).then(one.0.cmp(two.0)));
        let named = folders.into_iter().take(NAMED);
        named.map(|(path, size)| format!("{:>9}  {}", human_size(*size), String::from_utf8_lossy(path))).collect()
    }
}

/// Bytes for people: `1.4 MB` (decimal, as registries and disks count).
pub fn human_size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_largest_folders() {
        let mut sizes = Sizes::default();
        for (path, size) in
            [("node_modules/big/a", 3_000_000), ("node_modules/big/b/c", 500_000), ("src/a", 10), ("x", 99)]
        {
            sizes.add(path.as_bytes(), size);
        }
        assert_eq!(sizes.total(), 3_500_109);
        let largest = sizes.largest();
        assert_eq!(largest[0].trim_start(), "3.5 MB  node_modules/");
        assert_eq!(largest[1].trim_start(), "3.5 MB  node_modules/big/");
        assert_eq!(largest[2].trim_start(), "99 B  x");
        assert_eq!(largest.len(), 4);
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (1_234_567, "1.2 MB")]
        {
            assert_eq!(human_size(bytes), text);
        }
    }
}
