//! A stolen admin key, and what undoes it.

use super::{
    alone::node_key,
    machine::{Machine, NETWORK},
};

#[test]
fn what_a_thief_of_the_admin_key_published_is_undone() {
    let machine = Machine::with_network();
    let (_a, _b) = (machine.running_hub("a"), machine.running_hub("b"));
    machine.good(&["member", "add", "office", "--key", &node_key(1)]);
    machine.good(&["network", "publish"]);
    // the thief has the directory, but the recovery key was moved away
    machine.copy("lab.flatlan", "stolen");
    machine.copy("lab.flatlan/recovery.key", "recovery.key");
    std::fs::remove_file(machine.path("lab.flatlan/recovery.key")).unwrap();
    for thief in [2, 3, 4] {
        machine.good(&["member", "add", &format!("thief{thief}"), "--key", &node_key(thief), "--state", "stolen"]);
        machine.good(&["network", "publish", "--state", "stolen"]);
    }
    let lab = ["--state", "lab.flatlan"];
    machine.good(&[&["network", "recover", "--recovery-key", "recovery.key"], &lab[..]].concat());
    let plan = machine.run(&[&["network", "plan"], &lab[..]].concat());
    assert!(plan.stderr.contains("the admin key was replaced since: flatlan network publish"), "{plan:?}");
    assert!(plan.stderr.contains("hub a holds roster 4, which is older: flatlan network publish"), "{plan:?}");
    let ran = machine.run(&[&["network", "publish"], &lab[..]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "roster 1 of key epoch 1 is stored by a, b\n"));
    // the stolen key signs, but nothing comes of it
    let replaced = "cannot publish: hub a holds roster 1 of key epoch 1, newer than 4, the last one known here: someone else published: flatlan network pull --state stolen, look at flatlan network plan --state stolen, then try again";
    machine.refused(&["network", "publish", "--state", "stolen"], 1, replaced);
    machine.good(&["network", "pull", "--state", "stolen"]);
    let foreign = "cannot sign with stolen/admin.key: admin.key is not the admin key of this network: use the one made with it, or by the last `flatlan network recover`";
    machine.refused(&["network", "publish", "--state", "stolen"], 2, foreign);
    let plan = machine.good(&["network", "plan", "--state", "stolen"]);
    assert!(plan.contains("+ member thief2") && !plan.contains("office"), "the hubs hold none of them: {plan}");
}

#[test]
fn who_joined_under_the_thief_stays_joined() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    let token = machine.good(&["invite", "laptop"]);
    machine.copy("lab.flatlan", "stolen");
    machine.good(&["network", "publish", "--state", "stolen"]);
    machine.write("token", &token);
    machine.good(&["join", "--token-file", "token", "--state", "node"]);
    let lab = ["--state", "lab.flatlan"];
    machine.good(&[&["network", "recover", "--recovery-key", "lab.flatlan/recovery.key"], &lab[..]].concat());
    machine.good(&[&["network", "publish"], &lab[..]].concat());
    assert_eq!(machine.good(&[&["network", "pull"], &lab[..]].concat()), "joined: laptop");
}

#[test]
fn recovery_can_be_repeated_and_wants_the_right_key() {
    let machine = Machine::with_network();
    let recover = |key: &str| machine.run(&["network", "recover", "--recovery-key", key]);
    let wrong = recover("lab.flatlan/admin.key");
    assert_eq!(wrong.code, 2);
    assert_eq!(
        wrong.stderr,
        "error: cannot recover with lab.flatlan/admin.key: this is not the recovery key of the network: use the recovery.key made by `flatlan network create`\n"
    );
    let missing = recover("nowhere.key");
    assert_eq!(
        missing.stderr,
        "error: cannot read nowhere.key: no such file or directory: name the recovery.key that `flatlan network create` made\n"
    );
    let id = |text: &str| text.lines().find(|line| line.starts_with("id = ")).map(str::to_owned);
    let before = id(&machine.read(NETWORK));
    for _ in 0..2 {
        assert_eq!(recover("lab.flatlan/recovery.key").code, 0);
    }
    assert_eq!(id(&machine.read(NETWORK)), before);
    let signed = machine.good(&["network", "publish", "--out", "roster.bin", "--json"]);
    assert_eq!(signed, "{\"key_epoch\":2,\"serial\":1}");
    assert_eq!(machine.mode("lab.flatlan/admin.key"), 0o600);
}
