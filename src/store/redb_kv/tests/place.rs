//! Where a store is made: beside its place, or in it when a file system of its own is mounted there.

use super::{
    damage::{copy, files},
    *,
};

const MARK: &str = "making";

/// Notes in a file beside the store that it was being made in place; fails in doing so while there is a file `fails` beside it.
fn noting(directory: &Path) -> anyhow::Result<Box<dyn Durable>> {
    if directory.join(MARK).exists() {
        fs::write(directory.with_file_name("noted"), "")?;
        anyhow::ensure!(!directory.with_file_name("fails").exists(), "the disk is broken");
    }
    SyncedFiles::open(directory)
}

#[tokio::test]
async fn a_store_is_made_on_a_mount_point_of_its_own() {
    let parent = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::at(tempfile::tempdir_in(&parent).unwrap()) else { return };
    let path = disk.0.path();
    // As mkfs leaves it.
    fs::create_dir(path.join("lost+found")).unwrap();
    let options = RedbOptions { durable: noting, ..RedbOptions::default() };
    // The first time it does not come to its end.
    fs::write(parent.path().join("fails"), "").unwrap();
    assert!(RedbKv::open_with(path, options).is_err());
    assert!(path.join(MARK).exists() && parent.path().join("noted").exists());
    fs::remove_file(parent.path().join("fails")).unwrap();
    for round in 0..2 {
        let kv = RedbKv::open_with(path, options).unwrap();
        assert!(!path.join(MARK).exists() && path.join("lost+found").exists());
        assert_eq!(kv.scan("").await.unwrap().len(), round);
        kv.commit(vec![], vec![put(&format!("n/{round}"), &[1; 100_000])]).await.unwrap();
    }
    let others = fs::read_dir(&parent).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(others.len(), 2, "{others:?}");
}

#[tokio::test]
async fn a_making_that_was_cut_short_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (whole, cut) = (directory.path().join("whole"), directory.path().join("cut"));
    drop(RedbKv::open(&whole).unwrap());
    let names: Vec<PathBuf> = files(&whole).iter().map(|file| file.strip_prefix(&whole).unwrap().to_owned()).collect();
    assert!(names.len() >= 3, "{names:?}");
    let harms: [fn(&Path); 3] = [
        |file| fs::remove_file(file).unwrap(),
        |file| fs::File::options().write(true).open(file).unwrap().set_len(0).unwrap(),
        |file| fs::write(file, [7; 40]).unwrap(),
    ];
    for (name, harm) in names.iter().flat_map(|name| harms.map(|harm| (name, harm))) {
        copy(&whole, &cut);
        fs::write(cut.join(MARK), "").unwrap();
        harm(&cut.join(name));
        let kv = RedbKv::open(&cut).unwrap();
        assert_eq!(kv.revision().await.unwrap(), Revision(0), "{}", name.display());
        kv.commit(vec![], vec![put("a", b"1")]).await.unwrap();
        drop(kv);
        assert!(!cut.join(MARK).exists());
        assert_eq!(RedbKv::open(&cut).unwrap().scan("").await.unwrap().len(), 1);
        fs::remove_dir_all(&cut).unwrap();
    }
}

#[tokio::test]
async fn without_its_mark_or_with_commits_nothing_is_thrown_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let kv = RedbKv::open(&path).unwrap();
    kv.commit(vec![], vec![put("a", b"1")]).await.unwrap();
    drop(kv);
    fs::write(path.join(MARK), "").unwrap();
    assert_eq!(RedbKv::open(&path).unwrap().scan("").await.unwrap().len(), 1);
    for mark in [true, false] {
        if !mark {
            fs::remove_file(path.join(MARK)).unwrap();
        }
        let database = path.join(FILE);
        if database.exists() {
            fs::rename(&database, directory.path().join(FILE)).unwrap();
        }
        let error = format!("{:#}", RedbKv::open(&path).map(drop).unwrap_err());
        assert!(error.contains("berth restore"), "{error}");
    }
}

#[test]
fn nothing_is_made_beside_files_of_another_form() {
    for (name, wanted) in [("db", "earlier berth"), ("notes", "is missing")] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(name), "something").unwrap();
        let error = format!("{:#}", RedbKv::open(directory.path()).map(drop).unwrap_err());
        assert!(error.contains(wanted) && error.contains("berth restore"), "{error}");
        assert!(!directory.path().join(FILE).exists());
    }
}
