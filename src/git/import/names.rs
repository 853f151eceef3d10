//! Paths of an archive → paths of a tree. Pure.

/// Longest path, and longest name in it, bytes: what Linux takes.
pub const MAX_PATH: usize = 4096;
const MAX_NAME: usize = 255;
/// Directories in directories; builds follow no more.
const MAX_DEPTH: usize = 500;

/// `None`: the root itself. Else the path without `./`, doubled slashes and a slash at the end.
///
/// # Errors
/// Why there can be no such path in a tree, to be said after its name.
pub fn tree_path(path: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if path.len() > MAX_PATH {
        return Err("has a path longer than 4096 bytes");
    }
    if path.is_empty() {
        return Err("has no name");
    }
    if path.starts_with(b"/") {
        return Err("has an absolute path; make the archive with `tar -C DIRECTORY -cz .`");
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
        check(name)?;
        names.push(name);
    }
    if names.len() > MAX_DEPTH {
        return Err("is nested too deeply");
    }
    Ok((!names.is_empty()).then(|| names.join(&b'/')))
}

fn check(name: &[u8]) -> Result<(), &'static str> {
    if name == b".." {
        return Err("leaves the archive with `..`");
    }
    if name.contains(&0) {
        return Err("has a name with a NUL byte in it");
    }
    if name.len() > MAX_NAME {
        return Err("has a name longer than 255 bytes");
    }
    // As git's fsck, which has the last word; it takes a backslash for a separator too, as Windows does.
    if name.split(|byte| *byte == b'\\').any(is_dot_git) {
        return Err("belongs to git itself; leave `.git` out with `tar --exclude-vcs`, or use `git archive`");
    }
    Ok(())
}

/// Whether some file system (HFS+, NTFS) would take the name for `.git` (git's `is_hfs_dotgit` and `is_ntfs_dotgit`).
fn is_dot_git(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name);
    let seen: String = name.chars().filter(|letter| !is_ignored_by_hfs(*letter)).collect();
    let stream = seen.split(':').next().unwrap_or_default();
    let plain = stream.trim_end_matches([' ', '.']).to_ascii_lowercase();
    plain == ".git" || plain == "git~1"
}

/// git's `next_hfs_char`.
fn is_ignored_by_hfs(letter: char) -> bool {
    matches!(letter, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_in_a_tree() {
        let long = [b'a'; 256];
        let deep = "a/".repeat(501);
        let many = "ab/".repeat(1400);
        type Row<'r> = (&'r [u8], Result<Option<&'r str>, &'r str>);
        let table: [Row<'_>; 32] = [
            (b"a", Ok(Some("a"))),
            (b"./a//b/", Ok(Some("a/b"))),
            (b"a/./b", Ok(Some("a/b"))),
            (b".", Ok(None)),
            (b"./", Ok(None)),
            (b"a b\n\xc3\xa4", Ok(Some("a b\n\u{e4}"))),
            (b".gitignore", Ok(Some(".gitignore"))),
            (b".github/x", Ok(Some(".github/x"))),
            (b"...", Ok(Some("..."))),
            (b"git", Ok(Some("git"))),
            (b"", Err("no name")),
            (b"/etc/passwd", Err("absolute")),
            (b"//a", Err("absolute")),
            (b"..", Err("`..`")),
            (b"a/../../b", Err("`..`")),
            (b"./..", Err("`..`")),
            (b".git/config", Err("git itself")),
            (b"a/.GIT", Err("git itself")),
            (b".git.", Err("git itself")),
            (b".git ", Err("git itself")),
            (b".git . /x", Err("git itself")),
            (b"GIT~1/config", Err("git itself")),
            (b".git::$INDEX_ALLOCATION", Err("git itself")),
            (b".git:x", Err("git itself")),
            (b"a\\.git\\config", Err("git itself")),
            (".g\u{200c}it".as_bytes(), Err("git itself")),
            ("\u{feff}.Git".as_bytes(), Err("git itself")),
            (b"a\0b", Err("NUL")),
            (&long, Err("longer than 255")),
            (deep.as_bytes(), Err("deeply")),
            (many.as_bytes(), Err("longer than 4096")),
            (b"a/.", Ok(Some("a"))),
        ];
        for (path, want) in table {
            let got = tree_path(path);
            match (&got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got.as_deref(), want.map(str::as_bytes), "{path:?}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{path:?}: {got}"),
                _ => panic!("{path:?}: {got:?}"),
            }
        }
    }
}
