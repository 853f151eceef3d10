use std::{
    collections::BTreeMap,
    fs,
    io::{Cursor, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::{
    archive::{Imported, Mode, Sink, read},
    *,
};

/// Contents in memory.
#[derive(Default)]
struct Contents(Vec<Vec<u8>>);

impl Sink for Contents {
    fn blob(&mut self, size: u64, content: &mut dyn Read) -> io::Result<u64> {
        let mut bytes = Vec::new();
        content.take(size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.push(bytes);
        Ok(self.0.len() as u64)
    }
}

const LIMITS: ImportLimits = ImportLimits { unpacked: 1 << 20, entries: 100, names: 10_000 };

fn listed(archive: &[u8]) -> Result<BTreeMap<String, (Mode, String)>, String> {
    let mut contents = Contents::default();
    let files = read(archive, &LIMITS, &mut contents).map_err(|error| error.to_string())?;
    let file = |Imported { path, mode, blob }: Imported| {
        let content = &contents.0[usize::try_from(blob).unwrap() - 1];
        (String::from_utf8(path).unwrap(), (mode, String::from_utf8_lossy(content).into_owned()))
    };
    Ok(files.into_iter().map(file).collect())
}

/// One entry, written as it is given: the library would refuse some names.
fn entry(kind: EntryType, path: &[u8], mode: u32, link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path);
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
    header.set_mode(mode);
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(path: &str) -> Vec<u8> {
    entry(EntryType::Regular, path.as_bytes(), 0o644, b"", path.as_bytes())
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend([0; 1024]);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_an_archive_may_hold() {
    let entries = [
        entry(
            EntryType::XGlobalHeader,
            b"pax_global_header",
            0o644,
            b"",
            b"52 comment=0123456789012345678901234567890123456789\n",
        ),
        file("./berth.yaml"),
        entry(EntryType::Directory, b"./bin/", 0o755, b"", b""),
        entry(EntryType::Directory, b"./bin/", 0o755, b"", b""),
        entry(EntryType::Directory, b"./empty/", 0o755, b"", b""),
        entry(EntryType::Regular, b"./bin/run", 0o755, b"", b"#!/bin/sh"),
        entry(EntryType::Symlink, b"./bin/link", 0o777, b"../../etc/passwd", b""),
        entry(EntryType::Link, b"./same", 0o644, b"./bin/run", b""),
    ];
    let plain = archive(&entries);
    let found = listed(&plain).unwrap();
    let modes: Vec<_> = found.iter().map(|(path, (mode, content))| (path.as_str(), *mode, content.as_str())).collect();
    assert_eq!(
        modes,
        [
            ("berth.yaml", Mode::File, "./berth.yaml"),
            ("bin/link", Mode::Symlink, "../../etc/passwd"),
            ("bin/run", Mode::Executable, "#!/bin/sh"),
            ("same", Mode::Executable, "#!/bin/sh"),
        ]
    );
    assert_eq!(listed(&gzip(&plain)).unwrap(), found);
    let (one, two) = plain.split_at(700);
    assert_eq!(listed(&[gzip(one), gzip(two)].concat()).unwrap(), found, "gzip of several members");
}

#[test]
fn only_a_directory_around_everything_is_taken_off() {
    let rows: [(&[&str], &[&str]); 5] = [
        (&["shop-1a2b/berth.yaml", "shop-1a2b/src/x"], &["berth.yaml", "src/x"]),
        (&["src/x", "berth.yaml"], &["berth.yaml", "src/x"]),
        (&["src/x", "other/y"], &["other/y", "src/x"]),
        (&["./src/x"], &["src/x"]),
        (&["index.html"], &["index.html"]),
    ];
    for (given, want) in rows {
        let entries: Vec<_> = given.iter().map(|path| file(path)).collect();
        let found: Vec<String> = listed(&archive(&entries)).unwrap().into_keys().collect();
        assert_eq!(found, want, "{given:?}");
    }
    let rooted = archive(&[entry(EntryType::Directory, b"./", 0o755, b"", b""), file("src/x")]);
    assert_eq!(listed(&rooted).unwrap().into_keys().collect::<Vec<_>>(), ["src/x"]);
}

#[test]
fn long_names_are_read_and_have_an_end() {
    let long = format!("{}/x", "d".repeat(200));
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    builder.append_data(&mut header, format!("a/{long}"), &b"1"[..]).unwrap();
    builder.append_data(&mut header, "b", &b"2"[..]).unwrap();
    let found = listed(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(found.into_keys().collect::<Vec<_>>(), [format!("a/{long}"), "b".to_owned()]);

    let record = |key: &str, value: &str| {
        let rest = format!(" {key}={value}\n");
        let length = (rest.len()..).find(|length| length.to_string().len() + rest.len() == *length).unwrap();
        format!("{length}{rest}").into_bytes()
    };
    let extended = |key, value| entry(EntryType::XHeader, b"x", 0o644, b"", &record(key, value));
    let found = listed(&archive(&[extended("path", &long), file("short"), file("other")])).unwrap();
    assert_eq!(found.into_keys().collect::<Vec<_>>(), [long.clone(), "other".to_owned()]);
    for (entries, why) in [
        (vec![extended("size", "9"), file("x")], "two sizes"),
        (vec![extended("GNU.sparse.major", "1"), file("x")], "sparse"),
        (vec![extended("path", "../x"), file("x")], "`..`"),
        (vec![entry(EntryType::GNULongName, b"l", 0o644, b"", &vec![b'a'; 9000]), file("x")], "9000 bytes"),
        (vec![entry(EntryType::XHeader, b"l", 0o644, b"", &vec![b'a'; 70_000]), file("x")], "70000 bytes"),
    ] {
        let error = listed(&archive(&entries)).unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[test]
fn hostile_archives_are_refused_by_name() {
    let special = |kind| archive(&[file("ok"), entry(kind, b"dev/x", 0o644, b"target", b"")]);
    let linked = |target: &[u8]| archive(&[file("ok"), entry(EntryType::Link, b"x", 0o644, target, b"")]);
    let many: Vec<_> = (0..101).map(|number| file(&number.to_string())).collect();
    let described: Vec<_> = (0..301).map(|_| entry(EntryType::XGlobalHeader, b"g", 0o644, b"", b"")).collect();
    let huge = entry(EntryType::Regular, b"zeros", 0o644, b"", &vec![0; 2 << 20]);
    let mut damaged = archive(&[file("a"), file("b")]);
    damaged[1024 + 3] ^= 1;
    let whole = archive(&[file("a"), file("b")]);
    let rows: Vec<(Vec<u8>, &str)> = vec![
        (special(EntryType::Char), "dev/x is a device"),
        (special(EntryType::Block), "dev/x is a device"),
        (special(EntryType::Fifo), "dev/x is a named pipe"),
        (special(EntryType::GNUSparse), "dev/x is a sparse file"),
        (special(EntryType::new(b'V')), "dev/x is neither"),
        (linked(b"nowhere"), "x is a hard link to what is not"),
        (linked(b"/etc/passwd"), "x is a hard link to what is not"),
        (linked(b"../ok"), "x is a hard link to what is not"),
        (archive(&[entry(EntryType::Symlink, b"x", 0o777, b"", b"")]), "x is a symbolic link to nothing"),
        (archive(&[file("/etc/passwd")]), "/etc/passwd has an absolute path"),
        (archive(&[file("a/../../x")]), "a/../../x leaves the archive"),
        (archive(&[file("a/.git/config")]), "a/.git/config belongs to git itself"),
        (archive(&[file("a/.GiT. /hooks/x")]), "belongs to git itself"),
        (archive(&[file("a"), file("a")]), "a is in the archive twice"),
        (archive(&[file("a"), file("./a")]), "./a is in the archive twice"),
        (archive(&[file("a"), file("a/b")]), "a/b is in the archive twice, or as a file and as a directory"),
        (archive(&[file("a/b"), file("a")]), "a is in the archive twice"),
        (
            archive(&[entry(EntryType::Symlink, b"a", 0o777, b"/etc", b""), file("a/passwd")]),
            "a/passwd is in the archive twice, or",
        ),
        (archive(&[file(".")]), ". is no directory"),
        (archive(&many), "more than 100 files"),
        (archive(&described), "more than 100 files"),
        (archive(std::slice::from_ref(&huge)), "unpacks to more than 1 MiB"),
        (gzip(&archive(&[huge])), "unpacks to more than 1 MiB"),
        (gzip(&vec![0; 4 << 20]), "no files in it"),
        (archive(&[]), "no files in it"),
        (archive(&[entry(EntryType::Directory, b"a/", 0o755, b"", b"")]), "no files in it"),
        (damaged, "cannot be read"),
        (whole[..600].to_vec(), "cannot be read"),
        (gzip(&whole)[..40].to_vec(), "cannot be read"),
        (Vec::new(), "neither a tar archive nor one compressed with gzip (empty)"),
        (b"PK\x03\x04".to_vec(), "a zip archive"),
        (b"BZh91AY".to_vec(), "bzip2"),
        (gzip(b"hello"), "neither"),
        (gzip(&gzip(&whole)), "compressed twice"),
        (b"<html>".repeat(200), "neither a tar archive"),
    ];
    for (bytes, why) in rows {
        let error = listed(&bytes).unwrap_err();
        assert!(error.contains(why), "{why:?} is not in {error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever is sent, what comes of it is a tree that git could have.
    #[test]
    fn any_bytes_are_read_or_refused(changes in proptest::collection::vec((0_usize..4096, any::<u8>()), 0..12), cut in 0_usize..5000, mended in any::<bool>()) {
        let mut bytes = archive(&[
            file("a/b"),
            entry(EntryType::GNULongName, b"l", 0o644, b"", b"long/name\0"),
            entry(EntryType::Regular, b"x", 0o755, b"", b"content"),
            entry(EntryType::XHeader, b"x", 0o644, b"", b"12 path=p/q\n"),
            entry(EntryType::Symlink, b"link", 0o777, b"a/b", b""),
        ]);
        let length = bytes.len();
        for (at, byte) in changes {
            bytes[at % length] = byte;
        }
        if mended {
            // So that more than the first header is looked at.
            for header in bytes.chunks_exact_mut(512) {
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        bytes.truncate(cut.max(1));
        let mut contents = Contents::default();
        if let Ok(files) = read(&bytes[..], &LIMITS, &mut contents) {
            for pair in files.windows(2) {
                prop_assert!(pair[0].path < pair[1].path);
            }
            for Imported { path, .. } in files {
                prop_assert!(!path.is_empty() && !path.starts_with(b"/"));
                for name in path.split(|byte| *byte == b'/') {
                    prop_assert!(!matches!(name, b"" | b"." | b".." | b".git"));
                }
            }
        }
    }
}

struct Fixture {
    directory: tempfile::TempDir,
    repositories: Repositories,
    git: Git,
}

fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("repositories");
        fs::create_dir(&root).unwrap();
        let repositories = Repositories::new(root);
        repositories.ensure(&env()).unwrap();
        let git = Git { binary: Git::find().unwrap(), hooks: "/nonexistent".into(), max_input: 1 << 20 };
        Self { directory, repositories, git }
    }

    fn import(&self, source: &[u8]) -> Result<Quarantined, ImportError> {
        let author = Author { user: "ann".parse().unwrap(), seconds: 1_700_000_000, message: "first\nsecond".into() };
        let limits = ImportLimits::for_input(16 << 20);
        self.repositories.import(&self.git, &env(), Cursor::new(source), &limits, &author)
    }

    /// Every file below the repositories.
    fn files(&self) -> Vec<PathBuf> {
        let (mut found, mut left) = (Vec::new(), vec![self.repositories.root().to_owned()]);
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        found
    }
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git").current_dir(directory).args(arguments).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_commit_has_the_tree_that_git_makes_of_the_same_files() {
    let fixture = Fixture::new();
    let work = fixture.directory.path().join("work");
    for directory in ["src/deep/er", "a", "empty"] {
        fs::create_dir_all(work.join(directory)).unwrap();
    }
    // In the order of git, a directory comes where its name with a slash would.
    for name in ["a.txt", "a-b", "a/x", "a0", "src/deep/er/\u{e4} \"quoted\"\\\n.js", "src/run", "zero"] {
        fs::write(work.join(name), if name == "zero" { String::new() } else { name.repeat(40_000) }).unwrap();
    }
    fs::set_permissions(work.join("src/run"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("../a.txt", work.join("src/link")).unwrap();
    fs::hard_link(work.join("a0"), work.join("src/a1")).unwrap();
    git(&work, &["init", "-q"]);
    git(&work, &["add", "-A"]);
    let want = git(&work, &["write-tree"]);
    for words in
        [&["-cz"][..], &["-c", "--format=pax"], &["-cz", "--format=gnu"], &["-c", "--transform=s,^\\./,shop-1/,"]]
    {
        let rooted = !words.iter().any(|word| word.starts_with("--transform"));
        let mut tar = Command::new("tar");
        tar.args(words).args(["--exclude=.git", "-C"]).arg(&work);
        if rooted {
            tar.arg(".");
        } else {
            tar.args(["./a", "./a.txt", "./a-b", "./a0", "./src", "./zero"]);
        }
        let output = tar.output().unwrap();
        let brought = fixture.import(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        fixture.repositories.keep_objects(&env(), brought.path()).unwrap();
        let repository = fixture.repositories.path(&env());
        let show = |format: &str| git(&repository, &["show", "-s", &format!("--format={format}"), &brought.commit]);
        assert_eq!(show("%T"), want, "{words:?}");
        assert_eq!(show("%an <%ae> %at %ct %P|%B"), "ann <ann@berth.invalid> 1700000000 1700000000 |first\nsecond");
        git(&repository, &["fsck", "--strict", "--full"]);
    }
    let again: Vec<_> = fixture.files();
    let packs = again.iter().filter(|path| path.extension().is_some_and(|extension| extension == "pack")).count();
    assert_eq!(packs, 1, "what is there already was brought again: {again:?}");
}

#[test]
fn nothing_is_left_of_what_is_refused() {
    let fixture = Fixture::new();
    let before = fixture.files();
    let modules = entry(EntryType::Symlink, b".gitmodules", 0o777, b"x", b"");
    let evil = b"[submodule \"x\"]\n\tpath = x\n\turl = -oProxyCommand=x\n";
    let short = archive(&[file("a"), entry(EntryType::Regular, b"b", 0o644, b"", &vec![b'x'; 200_000])]);
    let rows: [(Vec<u8>, &str); 6] = [
        (archive(&[file("a"), file(".git/config")]), ".git/config belongs to git"),
        (short[..100_000].to_vec(), "breaks off"),
        (gzip(&short)[..200].to_vec(), "cannot be read"),
        (archive(&[file("a"), modules]), "gitmodules"),
        (
            archive(&[file("a"), entry(EntryType::Regular, b".gitmodules", 0o644, b"", evil)]),
            "git does not take what is in it",
        ),
        (b"nonsense".to_vec(), "neither"),
    ];
    for (source, why) in rows {
        let error = fixture.import(&source).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(fixture.files(), before, "{why}");
    }
    let brought = fixture.import(&archive(&[file("a")])).unwrap();
    assert!(brought.path().join("pack").is_dir());
    drop(brought);
    assert_eq!(fixture.files(), before, "a quarantine outlives its upload");
}

#[test]
fn git_that_gives_up_is_not_blamed_on_the_archive() {
    let mut fixture = Fixture::new();
    fixture.git.binary = "/bin/false".into();
    let error =
        fixture.import(&archive(&[entry(EntryType::Regular, b"a", 0o644, b"", &vec![b'x'; 4 << 20])])).unwrap_err();
    assert!(matches!(&error, ImportError::Platform(_)), "{error}");
}
