use super::*;

const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPUnpzEXzPlWA7t2QLTkmCtPWlZ7J3DZ5Uwxcfm5Uk6";

fn keygen(arguments: &[&str]) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    let status = std::process::Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-C", "a comment", "-f"])
        .arg(&file)
        .args(arguments)
        .status()
        .unwrap();
    assert!(status.success(), "ssh-keygen {arguments:?}");
    let public = std::fs::read_to_string(file.with_extension("pub")).unwrap();
    (directory, public)
}

#[test]
fn kinds_of_keys_that_are_taken() {
    let kinds: [(&[&str], &str); 5] = [
        (&["-t", "ed25519"], "ssh-ed25519"),
        (&["-t", "ecdsa", "-b", "256"], "ecdsa-sha2-nistp256"),
        (&["-t", "ecdsa", "-b", "384"], "ecdsa-sha2-nistp384"),
        (&["-t", "ecdsa", "-b", "521"], "ecdsa-sha2-nistp521"),
        (&["-t", "rsa", "-b", "2048"], "ssh-rsa"),
    ];
    for (arguments, algorithm) in kinds {
        let (directory, public) = keygen(arguments);
        let keys = parse_upload(public.as_bytes()).unwrap();
        assert_eq!((keys.len(), keys[0].algorithm.as_str(), keys[0].comment.as_str()), (1, algorithm, "a comment"));
        let printed =
            std::process::Command::new("ssh-keygen").arg("-lf").arg(directory.path().join("key.pub")).output().unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        assert!(printed.contains(&keys[0].fingerprint), "{printed} {}", keys[0].fingerprint);
        assert!(public.starts_with(&keys[0].openssh));
    }
}

#[test]
fn hardware_keys_are_taken() {
    let ed25519 = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAICFo/k5LU8863u66YC9eUO2170QduohPURkQnbLa/dczAAAABHNzaDo= me";
    let ecdsa = "sk-ecdsa-sha2-nistp256@openssh.com AAAAInNrLWVjZHNhLXNoYTItbmlzdHAyNTZAb3BlbnNzaC5jb20AAAAIbmlzdHAyNTYAAABBBIELQJ2DgvaX1yQlKFokfWM2suuaCFI2qp0eJodHyg6O4ifxc3XpRKd1OS8dNYQtE/YjdXSrA+AOnMF5ns2Nkx4AAAAEc3NoOg== me";
    for text in [ed25519, ecdsa] {
        let keys = parse_upload(text.as_bytes()).unwrap();
        assert_eq!(keys[0].comment, "me");
    }
}

#[test]
fn several_keys_crlf_comments_and_duplicates() {
    let (_first, one) = keygen(&["-t", "ed25519"]);
    let (_second, two) = keygen(&["-t", "ed25519"]);
    let upload = format!("\u{feff}# my keys\r\n\r\n{}\r\n  {}\r\n{}\r\n", one.trim(), two.trim(), one.trim());
    let keys = parse_upload(upload.as_bytes()).unwrap();
    assert_eq!(keys.len(), 2);
    assert_ne!(keys[0].fingerprint, keys[1].fingerprint);
    let no_newline = parse_upload(one.trim().as_bytes()).unwrap();
    assert_eq!(no_newline[0], keys[0]);
}

#[test]
fn comments_are_cleaned() {
    let keys = parse_upload(format!("{ED25519} me\u{1b}[31m@box {}", "x".repeat(300)).as_bytes()).unwrap();
    assert!(keys[0].comment.starts_with("me[31m@box xx"));
    assert_eq!(keys[0].comment.chars().count(), MAX_COMMENT);
    assert!(parse_upload(format!("{ED25519}\n").as_bytes()).unwrap()[0].comment.is_empty());
}

#[test]
fn what_is_refused_and_why() {
    let (directory, public) = keygen(&["-t", "ed25519"]);
    let private = std::fs::read_to_string(directory.path().join("key")).unwrap();
    let (_weak, weak) = keygen(&["-t", "rsa", "-b", "1024"]);
    let convert = |format: &str| {
        let (directory, _) = keygen(&["-t", "rsa", "-b", "2048"]);
        let file = directory.path().join("key.pub");
        let output =
            std::process::Command::new("ssh-keygen").args(["-e", "-m", format, "-f"]).arg(&file).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let options = format!("command=\"rm -rf /\",no-pty {public}");
    let cut = &ED25519[..40];
    let two_lines_one_bad = format!("{ED25519}\nhello\n");
    let large = "a".repeat(MAX_UPLOAD + 1);
    let table = [
        ("", "no key was given"),
        ("\n# only a comment\n", "no key was given"),
        (private.as_str(), "PRIVATE key"),
        ("-----BEGIN RSA PRIVATE KEY-----\nAAAA", "PRIVATE key"),
        ("PuTTY-User-Key-File-3: ssh-ed25519", "PRIVATE key"),
        (&convert("RFC4716"), "RFC 4716"),
        (&convert("PKCS8"), "-m PKCS8"),
        (&convert("PEM"), "-m PEM"),
        (&weak, "1024 bits"),
        (&options, "options before the key"),
        (cut, "not an SSH public key"),
        ("hello world", "line 1: not an SSH public key"),
        (&two_lines_one_bad, "line 2: not an SSH public key"),
        ("ssh-ed25519", "not an SSH public key"),
        ("ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIGPUnpzEXzPlWA7t2QLTkmCtPWlZ7J3DZ5Uwxcfm5Uk6", "not an SSH public key"),
        ("ssh-ed25519-cert-v01@openssh.com AAAA", "certificate"),
        (&large, "larger than 64 KiB"),
        ("\u{0}\u{1}\u{2}", "not an SSH public key"),
    ];
    for (upload, want) in table {
        let error = parse_upload(upload.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(want), "{upload:.60?}: {error}");
        assert!(!error.contains('\u{0}'));
    }
    assert!(parse_upload(&[0xff, 0xfe, 0x00]).is_err());
}
