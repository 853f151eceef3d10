use std::io::{Cursor, Write};

use super::archive::{Writer, unpack};
use crate::domain::Timestamp;

fn whole() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), Timestamp::UNIX_EPOCH);
    writer.bytes("instance", b"0123456789abcdef\n").unwrap();
    let mut pieces = writer.pieces("store");
    // More than one piece, of bytes that do not compress to nothing.
    let noise = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8);
    pieces.write_all(&noise.collect::<Vec<u8>>()).unwrap();
    pieces.finish().unwrap();
    writer.finish(vec!["an image".into()]).unwrap()
}

#[test]
fn a_backup_is_read_back_whole() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = unpack(Cursor::new(whole()), directory.path()).unwrap();
    assert_eq!(manifest.missing, ["an image"]);
    let length = |name: &str| std::fs::metadata(directory.path().join(name)).unwrap().len();
    assert_eq!((length("store/000000"), length("store/000001")), (4 << 20, 5_000_000 - (4 << 20)));
    assert_eq!(length("instance"), 17);
}

#[test]
fn damage_anywhere_is_noticed() {
    let whole = whole();
    let refused = |bytes: Vec<u8>, what: &str| {
        let directory = tempfile::tempdir().unwrap();
        assert!(unpack(Cursor::new(bytes), directory.path()).is_err(), "{what} was taken");
    };
    for part in 0..8 {
        refused(whole[..whole.len() * part / 8].to_vec(), &format!("{part}/8 of it"));
        let mut flipped = whole.clone();
        // Neither in the header of gzip, which says nothing of the contents.
        flipped[20 + (whole.len() - 40) * part / 8] ^= 16;
        refused(flipped, &format!("a flipped bit at {part}/8"));
    }
    refused(whole[..whole.len() - 1].to_vec(), "all but the last byte");
}

#[test]
fn names_lead_nowhere_else() {
    for (name, kind) in [("../evil", b'0'), ("/etc/evil", b'0'), ("a/../../evil", b'0'), ("link", b'2')] {
        let mut header = tar::Header::new_old();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(4);
        header.set_mode(0o600);
        header.set_cksum();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(header.as_bytes()).unwrap();
        gzip.write_all(&{
            let mut block = [0; 512];
            block[..4].copy_from_slice(b"evil");
            block
        })
        .unwrap();
        gzip.write_all(&[0; 1024]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let error = unpack(Cursor::new(gzip.finish().unwrap()), &directory.path().join("in")).unwrap_err();
        assert!(!error.to_string().contains("cut off"), "{name}: {error}");
        assert!(error.to_string().contains(&format!("{name:?}")), "the member is not named: {error}");
        assert!(!directory.path().join("evil").exists());
    }
}

/// A gzipped tar of these members, with a manifest that says so, or something else.
fn archive(members: &[(&str, &[u8])], manifest: &str) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (name, bytes) in members.iter().chain([&("manifest.json", manifest.as_bytes())]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn what_is_wrong_is_named() {
    let manifest = |members: &str| {
        format!(
            r#"{{"format":1,"berth":"x","created_at":"2026-01-01T00:00:00Z","missing":[],"members":{{{members}}}}}"#
        )
    };
    let good =
        format!(r#""a/ok":{{"size":2,"sha256":"{}"}}"#, hex::encode(<sha2::Sha256 as sha2::Digest>::digest(b"ok")));
    let with = |name: &str, size: usize| manifest(&format!(r#"{good},"{name}":{{"size":{size},"sha256":"00"}}"#));
    let ok: (&str, &[u8]) = ("a/ok", b"ok");
    for (members, manifest, want) in [
        (
            vec![ok, ("b/\x1b[2Jbad", b"x")],
            with(r"b/\u001b[2Jbad", 1),
            r#""b/\u{1b}[2Jbad" in the backup is damaged: its checksum"#,
        ),
        (
            vec![ok, ("short", b"x")],
            with("short", 9),
            r#""short" in the backup is damaged: it has 1 bytes, and 9 were written"#,
        ),
        (vec![ok], with("gone", 1), r#""gone" is missing in the backup"#),
        (vec![ok, ("more", b"x")], manifest(&good), r#""more" is in the backup, and its manifest does not name it"#),
        (vec![ok, ("a/ok", b"ok")], manifest(&good), r#""a/ok" of the backup cannot be unpacked"#),
        (vec![ok], "{".to_owned(), r#""manifest.json" in the backup is no manifest"#),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let error = format!("{:#}", unpack(Cursor::new(archive(&members, &manifest)), directory.path()).unwrap_err());
        assert!(error.contains(want) && !error.contains('\x1b'), "{want}: {error}");
    }
    let twice = archive(&[ok], &manifest(&good)).repeat(2);
    let error = unpack(Cursor::new(twice), tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
    assert!(error.contains("followed by something else"), "{error}");
    let whole = archive(&[ok, ("b", &[7; 100])], &manifest(&good));
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&whole[..]), &mut plain).unwrap();
    // A header that is damaged has no name of its own: what stands before it is named.
    plain[1024 + 100] ^= 1;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let error = unpack(Cursor::new(gzip.finish().unwrap()), directory.path()).unwrap_err().to_string();
    assert!(error.contains(r#"after "a/ok""#), "{error}");
}
