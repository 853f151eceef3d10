//! What is told of a commit that failed is true for whoever opens the store next.

use super::*;

/// A store with `a` = 1 on a disk that can be broken, with the path of what breaks it.
async fn store(directory: &Path) -> (RedbKv, PathBuf, PathBuf) {
    let (path, mark) = (directory.join("store"), directory.join("fails"));
    let kv = RedbKv::open_with(&path, RedbOptions { durable: flaky, ..RedbOptions::default() }).unwrap();
    kv.commit(vec![], vec![put("a", b"1"), put("b", b"1")]).await.unwrap();
    (kv, path, mark)
}

async fn contents(path: &Path) -> Vec<(String, Vec<u8>)> {
    let kv = RedbKv::open(path).unwrap();
    kv.scan("").await.unwrap().into_iter().map(|entry| (entry.key, entry.value)).collect()
}

fn change() -> Vec<Write> {
    vec![put("a", &[2; 100_000]), Write::Delete("b".into()), put("c", b"2")]
}

fn old() -> Vec<(String, Vec<u8>)> {
    ["a", "b"].map(|key| (key.to_owned(), b"1".to_vec())).to_vec()
}

#[tokio::test]
async fn what_failed_is_not_found_by_the_next_server() {
    for healed in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let (kv, path, mark) = store(directory.path()).await;
        fs::write(&mark, "").unwrap();
        let error = kv.commit(vec![], change()).await.unwrap_err();
        assert!(matches!(error, KvError::Failed(_)), "{error}");
        if healed {
            fs::remove_file(&mark).unwrap();
        }
        // No other commit comes.
        drop(kv);
        assert_eq!(contents(&path).await, old());
        let kv = RedbKv::open(&path).unwrap();
        kv.commit(vec![], change()).await.unwrap();
    }
}

#[tokio::test]
async fn what_the_journal_cannot_take_back_is_taken_back_by_opening_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (kv, path, mark) = store(directory.path()).await;
    fs::write(&mark, "once").unwrap();
    let error = kv.commit(vec![], change()).await.unwrap_err();
    assert!(matches!(error, KvError::Failed(_)) && !mark.exists(), "{error}");
    // It is in order again, and needs no time.
    kv.commit(vec![], vec![put("d", b"1")]).await.unwrap();
    drop(kv);
    let wanted = [old(), vec![("d".to_owned(), b"1".to_vec())]].concat();
    assert_eq!(contents(&path).await, wanted);
}

#[tokio::test]
async fn what_cannot_be_taken_back_is_told_as_not_known() {
    for healed in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let (kv, path, mark) = store(directory.path()).await;
        fs::write(&mark, "journal").unwrap();
        let error = kv.commit(vec![], change()).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, KvError::Unknown(_)) && text.contains("taking it back failed"), "{text}");
        assert!(text.contains("not known") && text.contains("berth serve starts next"), "{text}");
        // Nobody is served what may go again; and of what is not begun, the outcome is known.
        assert_eq!(kv.get("a").await.unwrap().unwrap().value, b"1");
        let refused = kv.commit(vec![], vec![put("e", b"1")]).await.unwrap_err();
        assert!(matches!(refused, KvError::Failed(_)), "{refused}");
        if healed {
            fs::remove_file(&mark).unwrap();
        }
        drop(kv);
        let found = contents(&path).await;
        match healed {
            // It is tried once more at the end.
            true => assert_eq!(found, old()),
            // "Failed" would have been wrong.
            false => assert_eq!(found.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["a", "c"]),
        }
    }
}

#[test]
fn a_command_says_what_is_not_known_in_plain_words() {
    let error = crate::commands::CommandError::from(crate::store::StoreError::from(KvError::Unknown("EIO".into())));
    let text = error.to_string();
    assert_eq!(error.exit_status(), 1);
    assert!(text.contains("not in force now") && text.contains("may or may not") && text.contains("Tell the operator"));
}
