//! `flatlan lab` as people run it: the real binary, a lab that stays, exit codes and words.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
};

use tempfile::TempDir;

#[test]
fn a_lab_stays_up_for_a_user_without_root_and_its_failures_have_codes() {
    let nobody = Nobody::new();
    let allowed = nobody.shell("666", "unshare --user true 2>&1; echo $?").ends_with("0\n");
    if !allowed {
        // in a chroot, say: then it says so
        let said = nobody.shell("666", "$F lab up 2>&1; echo \"code: $?\"");
        assert!(said.contains("not permitted: no network namespaces: this needs root"), "{said}");
        assert!(said.ends_with("code: 3\n"), "{said}");
        return;
    }
    let said = nobody.shell(
        "666",
        "say() { echo \"$1: $2\"; }
         $F lab cut h1 2>&1; say no-lab $?
         $F lab down 2>&1; say no-down $?
         $F lab up --sites 1 --hubs 1 2>&1; say up $?
         $F lab show; say show $?
         $F lab exec a -- true; say exec $?
         $F lab exec a -- sh -c 'exit 9'; say inner $?
         $F lab cut nowhere 2>&1; say unknown $?
         $F lab cut h1; say cut $?
         $F lab show; $F lab heal all; say heal $?
         $F lab down; say down $?",
    );
    for line in [
        "error: no lab called lab is up: `flatlan lab up` starts one",
        "no-lab: 4",
        "no-down: 4",
        "up: 0",
        "machines inet admin h1 a-nat a a-1",
        "show: 0",
        "exec: 0",
        "inner: 9",
        "error: the lab refused: this lab has no \"nowhere\": `flatlan lab show` lists what there is",
        "unknown: 2",
        "cut: 0",
        "heal: 0",
        "down: 0",
    ] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
    assert!(said.lines().any(|line| line.starts_with("fault ")), "{said}");
}

#[test]
fn a_lab_that_may_not_be_says_what_is_missing_and_exits_3() {
    let said = Nobody::new().shell("600", "$F lab up 2>&1; echo \"code: $?\"");
    assert!(said.contains("error: the lab refused: not permitted: /dev/net/tun cannot be opened"), "{said}");
    assert!(said.ends_with("code: 3\n"), "{said}");
}

/// Somebody without any right, and a binary that everybody may run.
struct Nobody {
    folder: TempDir,
}

impl Nobody {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_flatlan"), folder.path().join("flatlan")).unwrap();
        Self { folder }
    }

    /// Runs a script, with the binary as $F and a TUN device of this mode, seen by this script only.
    fn shell(&self, mode: &str, script: &str) -> String {
        let outer = "set -e; mount -t tmpfs none /mnt; mknod -m $0 /mnt/tun c 10 200; mount --bind /mnt/tun /dev/net/tun; \
                     exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c \"$1\"";
        let Output { stdout, stderr, .. } = Command::new("unshare")
            .args(["--mount", "sh", "-c", outer, mode, script])
            .env("F", self.folder.path().join("flatlan"))
            .env("TMPDIR", self.folder.path())
            .env("HOME", "/")
            .output()
            .unwrap();
        assert!(!stdout.is_empty(), "{}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }
}
