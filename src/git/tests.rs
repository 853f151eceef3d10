use std::{io::Write, process::Command};

use super::*;
use crate::domain::BuildNumber;

fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(directory)
        .args(["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "protocol.file.allow=always"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

struct Fixture {
    _directory: tempfile::TempDir,
    repositories: Repositories,
    work: PathBuf,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("repositories");
    fs::create_dir(&root).unwrap();
    let repositories = Repositories::new(root);
    repositories.ensure(&env()).unwrap();
    let work = directory.path().join("work");
    fs::create_dir(&work).unwrap();
    git(&work, &["init", "-q", "-b", "main"]);
    Fixture { _directory: directory, repositories, work }
}

impl Fixture {
    fn commit(&self, files: &[(&str, &str)]) -> String {
        for (name, content) in files {
            let path = self.work.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        git(&self.work, &["add", "-A"]);
        git(&self.work, &["commit", "-q", "--allow-empty", "-m", "x"]);
        git(&self.work, &["rev-parse", "HEAD"])
    }

    fn bring(&self, commit: &str) {
        let path = self.repositories.path(&env());
        git(&self.work, &["push", "-q", path.to_str().unwrap(), &format!("{commit}:refs/berth/in/{commit}")]);
    }
}

#[test]
fn repositories_are_made_whole_and_removed() {
    let fixture = fixture();
    let path = fixture.repositories.ensure(&env()).unwrap();
    assert_eq!(git(&path, &["symbolic-ref", "HEAD"]), "refs/heads/main");
    assert_eq!(git(&path, &["rev-parse", "--is-bare-repository"]), "true");
    assert!(!path.join("hooks").exists() || fs::read_dir(path.join("hooks")).unwrap().next().is_none());
    fs::create_dir(fixture.repositories.root().join(".new-half")).unwrap();
    fixture.repositories.clean().unwrap();
    assert!(!fixture.repositories.root().join(".new-half").exists());
    fixture.repositories.remove(&env()).unwrap();
    fixture.repositories.remove(&env()).unwrap();
    assert_eq!(fs::read_dir(fixture.repositories.root()).unwrap().count(), 0);
}

#[test]
fn branches_move_only_from_where_they_were() {
    let fixture = fixture();
    let repositories = &fixture.repositories;
    let (one, two) = (fixture.commit(&[("a", "1")]), fixture.commit(&[("a", "2")]));
    fixture.bring(&two);
    let zeros = "0".repeat(40);
    let main = "refs/heads/main";
    assert_eq!(repositories.move_branch(&env(), main, &one, &two).unwrap(), Moved::Elsewhere(None));
    assert_eq!(repositories.move_branch(&env(), main, &zeros, &one).unwrap(), Moved::Yes);
    assert_eq!(repositories.move_branch(&env(), main, &zeros, &one).unwrap(), Moved::Already);
    assert_eq!(repositories.move_branch(&env(), main, &zeros, &two).unwrap(), Moved::Elsewhere(Some(one.clone())));
    assert_eq!(repositories.move_branch(&env(), main, &one, &two).unwrap(), Moved::Yes);
    assert_eq!(repositories.branch_commit(&env(), main).unwrap(), Some(two.clone()));
    repositories.set_head(&env(), "refs/heads/master").unwrap();
    assert_eq!(git(&repositories.path(&env()), &["symbolic-ref", "HEAD"]), "refs/heads/master");
    repositories.pin(&env(), BuildNumber(1), &one).unwrap();
    let pins =
        git(&repositories.path(&env()), &["for-each-ref", "--format=%(refname) %(objectname)", "refs/berth/builds"]);
    assert_eq!(pins, format!("refs/berth/builds/1 {one}"));
    assert!(repositories.move_branch(&env(), main, "zz", &two).is_err());
}

#[test]
fn what_cannot_be_built_is_found() {
    let fixture = fixture();
    let path = fixture.repositories.path(&env());
    let quarantine = fixture.work.join(".git/objects");
    let look = |id: &str| commit_obstacle(&path, Some(&quarantine), id).unwrap();
    let empty = fixture.commit(&[]);
    assert_eq!(look(&empty), Some(Obstacle::EmptyTree));
    let fine = fixture.commit(&[("a", "1")]);
    assert_eq!(look(&fine), None);
    assert_eq!(look(&git(&fixture.work, &["rev-parse", "HEAD^{tree}"])), Some(Obstacle::NotACommit));
    assert_eq!(look(&"1".repeat(40)), Some(Obstacle::NotACommit));
    assert!(!is_cut_off(&path, Some(&quarantine), &[&fine]).unwrap());

    let shallow = fixture._directory.path().join("shallow");
    let url = format!("file://{}", fixture.work.display());
    git(fixture._directory.path(), &["clone", "-q", "--depth", "1", &url, shallow.to_str().unwrap()]);
    let objects = shallow.join(".git/objects");
    assert!(is_cut_off(&path, Some(&objects), &[&fine]).unwrap());
    // Not when the server has the rest.
    fixture.bring(&fine);
    assert!(!is_cut_off(&path, Some(&objects), &[&fine]).unwrap());
}

#[test]
fn objects_are_looked_at_before_they_are_read() {
    let fixture = fixture();
    let path = fixture.repositories.path(&env());
    let fine = fixture.commit(&[("a", "1")]);
    fixture.bring(&fine);
    let repository = Repository::open_bare(&path).unwrap();
    let commit = repository.find_commit(Oid::from_str(&fine).unwrap()).unwrap();
    let message = "x".repeat(MAX_COMMIT);
    let huge = repository.commit(None, &commit.author(), &commit.author(), &message, &commit.tree().unwrap(), &[]);
    assert_eq!(commit_obstacle(&path, None, &huge.unwrap().to_string()).unwrap(), Some(Obstacle::HugeCommit));

    // An object that says it has 2^60 bytes: whoever reads it fails.
    let blob = "1".repeat(40);
    let loose = path.join("objects/11").join(&blob[2..]);
    fs::create_dir_all(loose.parent().unwrap()).unwrap();
    let mut zlib = flate2::write::ZlibEncoder::new(fs::File::create(&loose).unwrap(), flate2::Compression::fast());
    zlib.write_all(b"blob 1152921504606846976\0").unwrap();
    zlib.finish().unwrap();
    repository.reference("refs/tags/blob", Oid::from_str(&blob).unwrap(), true, "").unwrap();
    let after = fixture.commit(&[("a", "2")]);
    let objects = fixture.work.join(".git/objects");
    assert!(!is_cut_off(&path, Some(&objects), &[&blob, &after]).unwrap());
    let to = "acme/shop/prod".parse().unwrap();
    fixture.repositories.share_commit(&env(), &to, &fine).unwrap();
    fixture.repositories.share_commit(&env(), &to, &fine).unwrap();
    fixture.repositories.remove(&env()).unwrap();
    let shared = fixture.repositories.path(&to);
    assert_eq!(git(&shared, &["show", &format!("{fine}:a")]), "1");
    assert_eq!(git(&shared, &["for-each-ref", "--format=%(refname)"]), format!("refs/berth/promoted/{fine}"));
}

#[test]
fn a_quarantine_is_kept_and_others_are_refused() {
    let fixture = fixture();
    let objects = fixture.repositories.path(&env()).join("objects");
    let quarantine = objects.join("tmp_objdir-incoming-abc");
    fs::create_dir_all(quarantine.join("pack")).unwrap();
    fs::write(quarantine.join("pack/pack-1.idx"), "idx").unwrap();
    fs::write(quarantine.join("pack/pack-1.pack"), "pack").unwrap();
    fs::write(quarantine.join("pack/pack-1.keep"), "keep").unwrap();
    fixture.repositories.keep_objects(&env(), &quarantine).unwrap();
    fixture.repositories.keep_objects(&env(), &quarantine).unwrap();
    assert_eq!(fs::read(objects.join("pack/pack-1.pack")).unwrap(), b"pack");
    assert!(!objects.join("pack/pack-1.keep").exists());
    let elsewhere = fixture.work.join("tmp_objdir-incoming-abc");
    fs::create_dir(&elsewhere).unwrap();
    for bad in [elsewhere, objects.join("pack"), objects.join("../objects/pack/.."), PathBuf::from("/etc")] {
        assert!(fixture.repositories.keep_objects(&env(), &bad).is_err(), "{bad:?}");
    }
}

#[test]
fn head_can_be_set_by_several_at_once() {
    let fixture = fixture();
    for round in 0..50 {
        let branch = format!("refs/heads/b{round}");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| fixture.repositories.set_head(&env(), &branch).unwrap());
            }
        });
    }
}

#[test]
fn locks_and_quarantines_of_a_killed_server_go_at_its_next_start() {
    let fixture = fixture();
    let path = fixture.repositories.path(&env());
    let commit = fixture.commit(&[("a", "1")]);
    fixture.bring(&commit);
    let left = ["HEAD.lock", "packed-refs.lock", "refs/heads/main.lock", "objects/tmp_objdir-incoming-x/pack/a"];
    for name in left {
        fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
        fs::write(path.join(name), "").unwrap();
    }
    fixture.repositories.clean().unwrap();
    for name in left {
        assert!(!path.join(name).exists(), "{name} is still there");
    }
    let moved = fixture.repositories.move_branch(&env(), "refs/heads/main", &"0".repeat(40), &commit).unwrap();
    assert_eq!(moved, Moved::Yes);
}
