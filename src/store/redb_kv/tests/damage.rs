//! Damage of every kind: what is opened is whole, or is not opened.

use std::os::unix::fs::FileExt;

use super::*;

/// Offsets at which a byte is flipped in every file of the store; much of the database's file is not in use.
const FLIPS: u64 = 150;

/// A store with history: large values, rewritten and deleted records.
async fn fill(path: &Path) -> Vec<Entry> {
    let kv = RedbKv::open(path).unwrap();
    for n in 0..120_u64 {
        let length = if n % 40 == 39 { 150_000 } else { (n * 37 % 2000) as usize };
        let mut writes = vec![put(&format!("n/{:03}", n % 90), &vec![(n % 251) as u8; length])];
        if n % 7 == 0 {
            writes.push(Write::Delete(format!("n/{:03}", n / 2)));
        }
        kv.commit(vec![], writes).await.unwrap();
    }
    kv.scan("").await.unwrap()
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

pub(super) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Does something to a copy and opens it, twice. Whether it was refused.
async fn harm(whole: &Path, wanted: &[Entry], what: &str, how: impl Fn(&Path)) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    copy(whole, &path);
    how(&path);
    let mut refusals = Vec::new();
    for _ in 0..2 {
        match RedbKv::open(&path) {
            Ok(kv) => {
                assert!(kv.scan("").await.unwrap() == wanted, "{what}: it serves something else");
                refusals.push(None);
            }
            Err(error) => refusals.push(Some(format!("{error:#}"))),
        }
    }
    let [first, second] = &refusals[..] else { unreachable!() };
    assert!(first.is_none() || second.is_some(), "{what}: refused ({first:?}), then served");
    if let Some(text) = second {
        assert!(text.contains("berth restore") || text.contains("cannot be opened"), "{what}: {text}");
    }
    second.is_some()
}

#[tokio::test]
async fn damage_is_refused_or_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("store");
    let wanted = fill(&whole).await;
    let (mut opened, mut refused) = (0, 0);
    for file in files(&whole) {
        let name = file.strip_prefix(&whole).unwrap();
        let length = fs::metadata(&file).unwrap().len();
        for flip in 0..FLIPS.min(length) {
            // Spread over the file, never the same place within a block.
            let offset = (flip * length / FLIPS + flip * 97) % length;
            let how = |store: &Path| {
                let file = fs::File::options().read(true).write(true).open(store.join(name)).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset).unwrap();
                file.write_all_at(&[byte[0] ^ (1 << (flip % 8))], offset).unwrap();
            };
            match harm(&whole, &wanted, &format!("byte {offset} of {}", name.display()), how).await {
                true => refused += 1,
                false => opened += 1,
            }
        }
    }
    println!("{opened} opened whole, {refused} refused");
    assert!(refused > 10, "flipped bytes should be noticed now and then: {refused} of {}", opened + refused);
}

#[tokio::test]
async fn lost_and_shortened_files_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("store");
    let wanted = fill(&whole).await;
    let shorten = |store: &Path, to: u64| fs::File::options().write(true).open(store.join(FILE)).unwrap().set_len(to);
    let length = fs::metadata(whole.join(FILE)).unwrap().len();
    for part in 0..8 {
        let to = length * part / 8;
        let refused =
            harm(&whole, &wanted, &format!("the file cut at {to}"), |store| shorten(store, to).unwrap()).await;
        assert!(refused || part > 4, "a log cut at {to} of {length} is served");
    }
    for names in [&[FILE][..], &["journal.0", "journal.1"]] {
        let remove = |store: &Path| names.iter().for_each(|name| fs::remove_file(store.join(name)).unwrap());
        assert!(harm(&whole, &wanted, names[0], remove).await, "{names:?} missing");
    }
}

#[tokio::test]
async fn an_older_state_put_back_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, older) = (directory.path().join("store"), directory.path().join("older"));
    fill(&path).await;
    copy(&path, &older);
    let kv = RedbKv::open(&path).unwrap();
    for number in 0..2 {
        kv.commit(vec![], vec![put(&format!("new/{number}"), b"1")]).await.unwrap();
    }
    drop(kv);
    let newest = ["journal.0", "journal.1"].map(|name| (name, fs::read(path.join(name)).unwrap()));
    fs::remove_dir_all(&path).unwrap();
    copy(&older, &path);
    for (name, bytes) in newest {
        fs::write(path.join(name), bytes).unwrap();
    }
    let error = format!("{:#}", RedbKv::open(&path).map(drop).unwrap_err());
    assert!(error.contains("the last 2 are lost") && error.contains("berth restore"), "{error}");
}

#[tokio::test]
async fn a_batch_that_was_torn_is_done_again() {
    let directory = tempfile::tempdir().unwrap();
    let (path, older) = (directory.path().join("store"), directory.path().join("older"));
    fill(&path).await;
    copy(&path, &older);
    let kv = RedbKv::open(&path).unwrap();
    let writes = vec![put("n/001", b"new"), put("z", &[1; 200_000]), Write::Delete("n/002".into())];
    kv.commit(vec![], writes).await.unwrap();
    let wanted = kv.scan("").await.unwrap();
    drop(kv);
    for name in ["journal.0", "journal.1"] {
        fs::copy(path.join(name), older.join(name)).unwrap();
    }
    // Nothing of the batch, or some of it, with the seal and without.
    for part in 0..4 {
        let torn = directory.path().join(format!("torn{part}"));
        copy(&older, &torn);
        let database = redb::Database::open(torn.join(FILE)).unwrap();
        let writing = database.begin_write().unwrap();
        {
            let mut records = writing.open_table(RECORDS).unwrap();
            if part > 0 {
                records.remove("n/002").unwrap();
            }
            if part > 1 {
                let found = wanted.iter().find(|entry| entry.key == "n/001").unwrap();
                records.insert("n/001", (found.revision.0, found.value.as_slice())).unwrap();
            }
            if part > 2 {
                let group = crate::store::journal::Journal::read(&torn).unwrap().unwrap();
                let seal = serde_json::to_vec(&group.seal).unwrap();
                writing.open_table(META).unwrap().insert(SEAL, seal.as_slice()).unwrap();
            }
        }
        writing.commit().unwrap();
        drop(database);
        for _ in 0..2 {
            let kv = RedbKv::open(&torn).unwrap();
            assert!(kv.scan("").await.unwrap() == wanted, "part {part}");
        }
    }
}
