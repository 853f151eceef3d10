use std::{fs, io, time::Duration};

use super::*;
use crate::{
    domain::{Build, EnvRef, Environment},
    store::{
        Store,
        durable::Durable,
        load::{FILE, META, RECORDS, SEAL},
        seal::Seal,
    },
};

mod damage;
mod failing;
mod place;

fn put(key: &str, value: &[u8]) -> Write {
    Write::Put(key.to_owned(), value.to_vec())
}

#[tokio::test]
async fn keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    crate::store::contract::check(&RedbKv::open(directory.path()).unwrap()).await;
}

#[tokio::test]
async fn survives_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let kv = RedbKv::open(directory.path()).unwrap();
    let written = kv.commit(vec![], vec![put("a", &[7; 200_000])]).await.unwrap();
    drop(kv);
    let kv = RedbKv::open(directory.path()).unwrap();
    assert_eq!(kv.get("a").await.unwrap().unwrap().value, vec![7; 200_000]);
    assert_eq!(kv.revision().await.unwrap(), written);
    let next = kv.commit(vec![Guard::At("a".into(), written)], vec![Write::Delete("a".into())]).await.unwrap();
    assert!(next > written);
}

/// Fails while there is a file `fails` beside the store. With `journal` in it, the next write to the journal is lost as well; with `once`, too,
/// and then the disk is whole again.
struct Flaky {
    files: Box<dyn Durable>,
    mark: PathBuf,
    journal: bool,
}

fn broken<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(5))
}

impl Durable for Flaky {
    fn sync(&mut self) -> io::Result<()> {
        let Ok(how) = fs::read_to_string(&self.mark) else { return self.files.sync() };
        self.journal = !how.is_empty();
        broken()
    }

    fn sync_journal(&mut self, file: &fs::File) -> io::Result<()> {
        if !std::mem::take(&mut self.journal) {
            return self.files.sync_journal(file);
        }
        file.set_len(0)?;
        if fs::read_to_string(&self.mark)? == "once" {
            fs::remove_file(&self.mark)?;
        }
        broken()
    }
}

fn flaky(directory: &Path) -> anyhow::Result<Box<dyn Durable>> {
    let mark = directory.with_file_name("fails");
    anyhow::ensure!(!mark.exists(), "the disk is still broken");
    Ok(Box::new(Flaky { files: SyncedFiles::open(directory)?, mark, journal: false }))
}

/// Commits until it works again; the number of refusals.
async fn commit_again(kv: &RedbKv, write: Write) -> usize {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut refused = 0;
    loop {
        match kv.commit(vec![], vec![write.clone()]).await {
            Ok(_) => return refused,
            Err(error) => assert!(Instant::now() < deadline, "it never recovers: {error}"),
        }
        refused += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_a_failed_write_left_is_never_served() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mark) = (directory.path().join("store"), directory.path().join("fails"));
    let options = RedbOptions { durable: flaky, ..RedbOptions::default() };
    let kv = RedbKv::open_with(&path, options).unwrap();
    let before = kv.commit(vec![], vec![put("a", b"1"), put("b", b"1")]).await.unwrap();
    fs::write(&mark, "").unwrap();
    for _ in 0..3 {
        let error = kv.commit(vec![], vec![put("a", b"2"), Write::Delete("b".into())]).await.unwrap_err();
        assert!(matches!(&error, KvError::Failed(text) if text.contains("takes no changes")), "{error}");
        // Reading goes on, with what was acknowledged.
        assert_eq!(
            kv.scan("").await.unwrap().iter().map(|e| (e.value.as_slice(), e.revision)).collect::<Vec<_>>(),
            [(b"1".as_slice(), before), (b"1".as_slice(), before)]
        );
        assert_eq!(kv.revision().await.unwrap(), before);
    }
    let mut changes = kv.watch("", before).await.unwrap();
    fs::remove_file(&mark).unwrap();
    commit_again(&kv, put("c", b"3")).await;
    assert_eq!(kv.get("c").await.unwrap().unwrap().value, b"3");
    // Those who were told that their commits failed were told the truth.
    let unchanged = |kv: &RedbKv| {
        let found = futures::executor::block_on(kv.scan("")).unwrap();
        found.into_iter().map(|entry| (entry.key, entry.value)).collect::<Vec<_>>()
    };
    let want = [("a", b"1"), ("b", b"1"), ("c", b"3")].map(|(key, value)| (key.to_owned(), value.to_vec()));
    assert_eq!(unchanged(&kv), want);
    let first = futures::StreamExt::next(&mut changes).await.unwrap();
    assert!(matches!(&first, Change::Key { key, .. } if key == "c"), "{first:?}");
    drop(kv);
    assert_eq!(unchanged(&RedbKv::open(&path).unwrap()), want);
}

/// A file system of its own that is soon full; unmounted on drop.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(directory: tempfile::TempDir) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("left out: mounting needs root");
            return None;
        }
        let mount = nix::mount::mount::<str, _, _, _>(
            Some("berth-test"),
            directory.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("size=24m"),
        );
        mount.unwrap();
        Some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_refuses_changes_and_is_recovered_from() {
    let Some(disk) = SmallDisk::new() else { return };
    let path = disk.0.path().join("store");
    let kv = RedbKv::open(&path).unwrap();
    let ballast = disk.0.path().join("ballast");
    for round in 0..3 {
        kv.commit(vec![], vec![put("round", &[round])]).await.unwrap();
        // All that is left.
        let mut file = fs::File::create(&ballast).unwrap();
        while io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        drop(file);
        let mut acknowledged = 0;
        let error = loop {
            match kv.commit(vec![], vec![put(&format!("n/{round}/{acknowledged:05}"), &[1; 2000])]).await {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
            assert!(acknowledged < 20_000, "the disk is never full");
        };
        // What failed can be taken back without any room.
        assert!(matches!(&error, KvError::Failed(text) if text.contains("No space left")), "{error}");
        assert_eq!(kv.scan(&format!("n/{round}/")).await.unwrap().len(), acknowledged, "round {round}");
        assert!(kv.commit(vec![], vec![put("more", b"1")]).await.is_err());
        fs::remove_file(&ballast).unwrap();
        commit_again(&kv, put("again", &[round])).await;
        let found = kv.scan(&format!("n/{round}/")).await.unwrap();
        assert_eq!(found.len(), acknowledged, "what failed has come into force");
        for entry in found {
            kv.commit(vec![], vec![Write::Delete(entry.key)]).await.unwrap();
        }
    }
    let before = kv.scan("").await.unwrap();
    drop(kv);
    assert_eq!(RedbKv::open(&path).unwrap().scan("").await.unwrap(), before);
}

/// A store as version 1 wrote it: no seal, and records without the fields that came later.
fn old_store(directory: &Path) {
    fs::create_dir(directory).unwrap();
    let database = redb::Database::create(directory.join(FILE)).unwrap();
    let records = [
        (
            "env/acme/shop/dev",
            r#"{"name":"acme/shop/dev","config":{"A":"b"},"created_at":"2026-01-02T03:04:05Z","current":1,"target":1,"scale":{},"domains":[],"deploy_branch":"refs/heads/main"}"#,
        ),
        (
            "build/acme/shop/dev/0000000001",
            r#"{"env":"acme/shop/dev","number":1,"commit":"0000000000000000000000000000000000000001","branch":null,"old_commit":null,"state":"succeeded","queued_at":"2026-01-02T03:04:05Z","started_at":null,"finished_at":null,"pushed_by":"alice","image":null,"release":1}"#,
        ),
    ];
    let writing = database.begin_write().unwrap();
    for (revision, (key, value)) in (41_u64..).zip(records) {
        writing.open_table(RECORDS).unwrap().insert(key, (revision, value.as_bytes())).unwrap();
    }
    writing.commit().unwrap();
}

#[tokio::test]
async fn a_store_of_version_1_is_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    old_store(&path);
    let env: EnvRef = "acme/shop/dev".parse().unwrap();
    for _ in 0..2 {
        let kv = RedbKv::open(&path).unwrap();
        assert_eq!(kv.revision().await.unwrap(), Revision(42));
        let store = Store::new(Arc::new(kv));
        assert_eq!(store.need::<Environment>(&env).await.unwrap().config["A"], "b");
        let build = &store.list::<Build>("acme/shop/dev/").await.unwrap()[0];
        assert!(!build.detached && build.timings.is_empty());
    }
    let kv = RedbKv::open(&path).unwrap();
    let revision = kv.commit(vec![Guard::At("env/acme/shop/dev".into(), Revision(41))], vec![put("x", b"")]).await;
    assert_eq!(revision.unwrap(), Revision(43));
}

/// Steps as a later Berth might have them.
const LATER: &[Migration] = &[
    MIGRATIONS[0],
    Migration {
        to: 3,
        what: "rename a field",
        step: |contents| {
            let renamed = contents.iter().filter(|(key, _)| key.starts_with("build/")).map(|(key, (value, _))| {
                let mut build: serde_json::Value = serde_json::from_slice(value)?;
                let object = build.as_object_mut().ok_or_else(|| anyhow::anyhow!("{key} is no object"))?;
                let user = object.remove("pushed_by").unwrap_or_default();
                object.insert("by".into(), user);
                Ok(put(key, &serde_json::to_vec(&build)?))
            });
            renamed.collect()
        },
    },
    Migration { to: 4, what: "drop a record", step: |_| Ok(vec![Write::Delete("env/acme/shop/dev".into())]) },
];

#[tokio::test]
async fn migrations_are_applied_once_and_a_newer_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    old_store(&path);
    let later = RedbOptions { migrations: LATER, ..RedbOptions::default() };
    for _ in 0..2 {
        let kv = RedbKv::open_with(&path, later).unwrap();
        let entries = kv.scan("").await.unwrap();
        assert_eq!(entries.len(), 1);
        assert!(String::from_utf8_lossy(&entries[0].value).contains(r#""by":"alice""#));
        assert_eq!((entries[0].revision, kv.revision().await.unwrap()), (Revision(43), Revision(44)));
    }
    let error = format!("{:#}", RedbKv::open(&path).map(drop).unwrap_err());
    assert!(error.contains("newer berth (its version is 4, this one knows up to 2)"), "{error}");
}

#[tokio::test]
async fn a_migration_that_fails_changes_nothing() {
    const FAILING: &[Migration] =
        &[LATER[0], LATER[1], Migration { to: 4, what: "cannot", step: |_| anyhow::bail!("this record is odd") }];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    old_store(&path);
    let error = RedbKv::open_with(&path, RedbOptions { migrations: FAILING, ..RedbOptions::default() });
    let error = format!("{:#}", error.map(drop).unwrap_err());
    assert!(error.contains("version 4 (cannot): this record is odd"), "{error}");
    // The steps before it have been made, and the rest goes on from there.
    let kv = RedbKv::open_with(&path, RedbOptions { migrations: LATER, ..RedbOptions::default() }).unwrap();
    assert_eq!(kv.scan("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn commits_that_wait_share_a_sync() {
    struct Counting(Box<dyn Durable>, PathBuf);
    impl Durable for Counting {
        fn sync(&mut self) -> io::Result<()> {
            io::Write::write_all(&mut fs::File::options().append(true).create(true).open(&self.1)?, b"x")?;
            self.0.sync()
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let durable: MakeDurable = |path| Ok(Box::new(Counting(SyncedFiles::open(path)?, path.with_file_name("syncs"))));
    let path = directory.path().join("store");
    let kv = RedbKv::open_with(&path, RedbOptions { durable, ..RedbOptions::default() }).unwrap();
    let commits = (0..500).map(|n| kv.commit(vec![], vec![put(&format!("n/{n}"), b"")]));
    let done = futures::future::try_join_all(commits).await.unwrap();
    assert_eq!(done.len(), 500);
    let syncs = fs::metadata(directory.path().join("syncs")).unwrap().len();
    assert!(syncs < 100, "{syncs} syncs for 500 commits");
}

#[test]
fn an_empty_store_is_sealed() {
    let directory = tempfile::tempdir().unwrap();
    drop(RedbKv::open(directory.path()).unwrap());
    let group = crate::store::journal::Journal::read(directory.path()).unwrap().unwrap();
    assert_eq!(group.seal, Seal::empty(2));
}
