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
        assert!(!directory.path().join("evil").exists());
    }
}
