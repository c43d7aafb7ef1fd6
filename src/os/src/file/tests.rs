use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    process::{Command, Stdio},
};

use rustix::mount::MountFlags;
use tempfile::TempDir;

use super::*;
use crate::testing::{as_nobody, with_small_disk};

fn state() -> (TempDir, StateDir) {
    let temp = TempDir::new().unwrap();
    let dir = StateDir::create(&temp.path().join("state"), Privacy::Private).unwrap();
    (temp, dir)
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn what_is_made_is_private_whatever_the_umask() {
    let (_temp, dir) = state();
    dir.write_new("key", b"secret", FileMode::Secret).unwrap();
    dir.write("roster", b"open", FileMode::Public).unwrap();
    assert_eq!(mode(dir.path()), 0o700);
    assert_eq!((mode(&dir.path().join("key")), mode(&dir.path().join("roster"))), (0o600, 0o644));
    assert_eq!(**dir.read_secret("key").unwrap(), *b"secret");
    assert_eq!(dir.read("roster").unwrap().unwrap(), b"open");
    assert_eq!(dir.read("none").unwrap(), None);
    assert_eq!(dir.list().unwrap(), ["key", "roster"]);
    dir.remove("roster").unwrap();
    dir.remove("roster").unwrap();
    assert!(!dir.exists("roster").unwrap());
}

#[test]
fn what_is_set_aside_stays_under_a_name_of_its_own() {
    let (_temp, dir) = state();
    for bytes in [b"one", b"two"] {
        dir.write("roster", bytes, FileMode::Secret).unwrap();
        dir.set_aside("roster").unwrap();
    }
    assert_eq!(dir.list().unwrap(), ["roster.damaged", "roster.damaged-2"]);
    assert_eq!(dir.read("roster.damaged").unwrap().unwrap(), b"one");
    assert!(dir.set_aside("roster").is_err());
}

#[test]
fn a_lax_directory_is_refused_with_its_repair() {
    let (_temp, dir) = state();
    let path = dir.path().display();
    for lax in [0o750, 0o701, 0o770, 0o755] {
        chmod(dir.path(), lax);
        let error = StateDir::open(dir.path(), Privacy::Private).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("state directory {path} is open to others (mode {lax:04o}): run `chmod 700 {path}`")
        );
        assert_eq!(error.exit_class(), ExitClass::Wrong);
    }
    StateDir::open(dir.path(), Privacy::Readable).unwrap();
    chmod(dir.path(), 0o775);
    assert_eq!(
        StateDir::open(dir.path(), Privacy::Readable).unwrap_err().to_string(),
        format!("state directory {path} is open to others (mode 0775): run `chmod go-w {path}`")
    );
}

#[test]
fn a_socket_is_shared_with_the_directorys_owner_and_with_a_group_that_exists() {
    let (_temp, dir) = state();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    let dir = StateDir::open(dir.path(), Privacy::Private).unwrap();
    let socket = dir.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let look = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    dir.share_socket("s", "nobody-has-such-a-group").unwrap();
    assert_eq!((look(&socket).0, look(&socket).2), (65534, 0o600));
    assert_eq!(look(dir.path()), (65534, 65534, 0o700));
    // Debian's group 1
    dir.share_socket("s", "daemon").unwrap();
    assert_eq!(look(&socket), (65534, 1, 0o660));
    assert_eq!(look(dir.path()), (65534, 1, 0o710));
    StateDir::open(dir.path(), Privacy::Private).unwrap();
}

#[test]
fn a_missing_directory_is_named() {
    let error = StateDir::open(Path::new("/nonexistent/x"), Privacy::Private).unwrap_err();
    assert_eq!(error.to_string(), "state directory /nonexistent/x does not exist: name the right one with --state DIR");
    assert_eq!(error.exit_class(), ExitClass::Wrong);
}

#[test]
fn a_lax_secret_is_refused_with_its_repair() {
    let (_temp, dir) = state();
    dir.write("key", b"secret", FileMode::Secret).unwrap();
    let path = dir.path().join("key");
    for lax in [0o640, 0o604, 0o644, 0o660] {
        chmod(&path, lax);
        let error = dir.read_secret("key").unwrap_err();
        let path = path.display();
        assert_eq!(
            error.to_string(),
            format!(
                "secret {path} can be read by others (mode {lax:04o}): run `chmod 600 {path}`, and replace the key if \
                 someone may have read it"
            )
        );
        assert_eq!(error.exit_class(), ExitClass::Wrong);
    }
    chmod(&path, 0o400);
    dir.read_secret("key").unwrap();
}

#[test]
fn a_file_that_others_may_change_is_refused() {
    let (_temp, dir) = state();
    dir.write("roster", b"x", FileMode::Public).unwrap();
    let path = dir.path().join("roster");
    chmod(&path, 0o664);
    let path = path.display();
    assert_eq!(
        dir.read("roster").unwrap_err().to_string(),
        format!("{path} can be changed by others (mode 0664): run `chmod go-w {path}`")
    );
}

#[test]
fn links_and_pipes_are_refused_without_hanging() {
    let (_temp, dir) = state();
    dir.write("real", b"x", FileMode::Secret).unwrap();
    symlink("real", dir.path().join("link")).unwrap();
    rustix::fs::mknodat(CWD, dir.path().join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    for name in ["link", "pipe", "dir"] {
        for error in [dir.read(name).unwrap_err(), dir.read_secret(name).unwrap_err()] {
            assert_eq!(
                error.to_string(),
                format!(
                    "{} is no plain file: symbolic links and devices are refused here: put the file itself in its place",
                    dir.path().join(name).display()
                )
            );
        }
    }
    dir.write("link", b"y", FileMode::Secret).unwrap();
    assert_eq!(dir.read("real").unwrap().unwrap(), b"x", "a write replaces the link, not what it points to");
    assert_eq!(dir.read("link").unwrap().unwrap(), b"y");
}

#[test]
fn a_secret_that_is_missing_or_too_long_is_named() {
    let (_temp, dir) = state();
    let path = dir.path().join("key");
    assert_eq!(
        dir.read_secret("key").unwrap_err().to_string(),
        format!(
            "{} does not exist: name the right directory with --state DIR, or restore the file from a copy",
            path.display()
        )
    );
    dir.write("key", &vec![1; MOST_SECRET + 1], FileMode::Secret).unwrap();
    assert!(matches!(dir.read_secret("key"), Err(FileError::TooLong { most: MOST_SECRET, .. })));
    dir.write("key", &vec![1; MOST_SECRET], FileMode::Secret).unwrap();
    assert_eq!(dir.read_secret("key").unwrap().len(), MOST_SECRET);
}

#[test]
fn a_new_file_never_replaces_an_old_one() {
    let (_temp, dir) = state();
    dir.write_new("key", b"first", FileMode::Secret).unwrap();
    let error = dir.write_new("key", b"second", FileMode::Secret).unwrap_err();
    let path = dir.path().join("key");
    assert_eq!(error.to_string(), format!("cannot write {}: it exists already: move it away first", path.display()));
    assert_eq!(**dir.read_secret("key").unwrap(), *b"first");
}

#[test]
fn a_full_disk_keeps_the_old_file_and_says_so() {
    let temp = TempDir::new().unwrap();
    with_small_disk(temp.path(), 256 << 10, MountFlags::empty(), || {
        let dir = StateDir::open(temp.path(), Privacy::Private).unwrap();
        dir.write("roster", b"old", FileMode::Public).unwrap();
        let error = dir.write("roster", &vec![1; 1 << 20], FileMode::Public).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "cannot write {}: no space left on its disk: free some space and try again; the file is as it was",
                temp.path().join("roster").display()
            )
        );
        assert_eq!(error.exit_class(), ExitClass::Failed);
        assert_eq!(dir.read("roster").unwrap().unwrap(), b"old");
        let left: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["roster"], "nothing half-written stays");
        dir.write("roster", b"new", FileMode::Public).unwrap();
        assert_eq!(dir.read("roster").unwrap().unwrap(), b"new");

        fs::write(temp.path().join("fill"), vec![1; 200 << 10]).unwrap();
        let _ = fs::write(temp.path().join("fill2"), vec![1; 200 << 10]);
        dir.lock().expect("a full disk keeps nobody from starting");
    });
}

#[test]
fn a_read_only_disk_is_named() {
    let temp = TempDir::new().unwrap();
    with_small_disk(temp.path(), 256 << 10, MountFlags::RDONLY, || {
        let dir = StateDir::open(temp.path(), Privacy::Private).unwrap();
        let error = dir.write("roster", b"x", FileMode::Public).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "cannot write {}: read-only file system: run as a user who may, or use another directory with --state \
                 DIR",
                temp.path().join("roster").display()
            )
        );
        assert_eq!(error.exit_class(), ExitClass::NotPermitted);
    });
}

#[test]
fn two_processes_cannot_share_a_directory() {
    let (_temp, dir) = state();
    let lock = dir.lock().unwrap();
    let lock_file = dir.path().join("lock");
    let other = || Command::new("flock").arg("--nonblock").arg(&lock_file).arg("true").status().unwrap();
    assert!(!other().success(), "another process is refused");
    let again = StateDir::open(dir.path(), Privacy::Private).unwrap();
    let path = dir.path().display();
    assert_eq!(
        again.lock().unwrap_err().to_string(),
        format!(
            "state directory {path} is in use by another process (pid {}): stop it with `flatlan down --state {path}`, \
             or use another --state",
            std::process::id()
        )
    );
    drop(lock);
    assert!(other().success());

    let mut holder = Command::new("flock")
        .arg(&lock_file)
        .args(["sh", "-c", "echo held; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    let refused = dir.lock().unwrap_err();
    assert!(matches!(refused, FileError::InUse { .. }));
    assert_eq!(refused.exit_class(), ExitClass::Failed);
    drop(holder.stdin.take());
    holder.wait().unwrap();
    dir.lock().expect("the lock ends with its process");
}

#[test]
fn a_newer_directory_is_refused_untouched() {
    let (_temp, dir) = state();
    assert_eq!(dir.check_version(3).unwrap(), 3);
    assert_eq!(dir.check_version(4).unwrap(), 3);
    let path = dir.path().join("version");
    let before = fs::metadata(&path).unwrap();
    let error = dir.check_version(2).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "state directory {} was written by a newer flatlan (format 3, this one knows 2): install that version, or \
             use another --state; nothing was changed",
            dir.path().display()
        )
    );
    assert_eq!(error.exit_class(), ExitClass::Wrong);
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    dir.write("version", b"three", FileMode::Public).unwrap();
    assert_eq!(
        dir.check_version(3).unwrap_err().to_string(),
        format!(
            "cannot read {}: it holds no version number: restore the directory from a copy, or use another --state",
            path.display()
        )
    );
}

#[test]
fn without_permission_the_directory_is_named() {
    let temp = TempDir::new().unwrap();
    chmod(temp.path(), 0o755);
    let path = temp.path().join("state");
    let error = as_nobody(|| StateDir::create(&path, Privacy::Private)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot create directory {}: permission denied: run as a user who may, or use another directory with \
             --state DIR",
            path.display()
        )
    );
    assert_eq!(error.exit_class(), ExitClass::NotPermitted);

    let error = as_nobody(|| StateDir::open(temp.path(), Privacy::Readable)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "state directory {} belongs to user 0, not to this user (65534): run as that user, or use another --state",
            temp.path().display()
        )
    );
    assert_eq!(error.exit_class(), ExitClass::NotPermitted);
}

#[test]
fn what_root_writes_into_a_users_directory_stays_the_users() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("state");
    fs::create_dir(&path).unwrap();
    chmod(&path, 0o700);
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    let dir = StateDir::open(&path, Privacy::Private).unwrap();
    dir.write("key", b"x", FileMode::Secret).unwrap();
    drop(dir.lock().unwrap());
    let sub = dir.subdirectory("sub", Privacy::Private).unwrap();
    sub.write("roster", b"x", FileMode::Public).unwrap();
    for name in ["key", "lock", "sub", "sub/roster"] {
        assert_eq!(fs::metadata(path.join(name)).unwrap().uid(), 65534, "{name}");
    }
    std::os::unix::fs::chown(path.join("key"), Some(7), None).unwrap();
    assert!(matches!(dir.read_secret("key"), Err(FileError::ForeignSecret { owner: 7, .. })));
}
