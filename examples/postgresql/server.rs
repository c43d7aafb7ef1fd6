//! PostgreSQL servers on machines of the lab: each with a data directory and an IPC namespace of its own, as the user
//! `postgres`, in the foreground.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use flatlan_lab::{Namespace, Process};
use tempfile::TempDir;

/// The directory of the newest server's programs, where there is one.
pub(crate) fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(Result::ok);
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.map(|entry| entry.path()).filter(|path| path.join("bin/postgres").exists());
    Some(newest.max_by_key(|path| number(path))?.join("bin"))
}

/// Where the servers have their data; gone with it.
pub(crate) struct Cluster {
    programs: PathBuf,
    folder: TempDir,
}

impl Cluster {
    pub(crate) fn new(programs: PathBuf) -> Self {
        let folder = TempDir::new().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { programs, folder }
    }

    /// A primary that lets one standby in, by its address.
    pub(crate) fn primary<'a>(&'a self, machine: &'a Namespace, ip: IpAddr, standby: IpAddr) -> Server<'a> {
        let server = Server { cluster: self, machine, folder: self.directory("primary"), ip, process: None };
        let data = server.data();
        server.run("initdb", &["--pgdata", &data, "--auth=trust", "--no-locale", "--encoding=UTF8"]);
        let access = format!("local all all trust\nhost replication postgres {standby}/32 trust\n");
        fs::write(server.folder.join(DATA).join("pg_hba.conf"), access).unwrap();
        server.start()
    }

    /// A standby, cloned from the primary over the network.
    pub(crate) fn standby<'a>(&'a self, machine: &'a Namespace, ip: IpAddr, primary: &Server<'_>) -> Server<'a> {
        let server = Server { cluster: self, machine, folder: self.directory("standby"), ip, process: None };
        let (data, from) = (server.data(), primary.ip.to_string());
        server
            .run("pg_basebackup", &["--pgdata", &data, "--host", &from, "--checkpoint=fast", "--write-recovery-conf"]);
        server.start()
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let id = |flag: &str| {
            let said = Command::new("id").args([flag, USER]).output().unwrap().stdout;
            String::from_utf8(said).unwrap().trim().parse::<u32>().unwrap()
        };
        chown(&path, Some(id("-u")), Some(id("-g"))).unwrap();
        path
    }
}

/// One server. It is stopped when it is dropped.
pub(crate) struct Server<'a> {
    cluster: &'a Cluster,
    machine: &'a Namespace,
    /// Its sockets are here, and its data in a folder inside.
    folder: PathBuf,
    ip: IpAddr,
    process: Option<Process>,
}

impl Server<'_> {
    fn start(mut self) -> Self {
        let mut command = self.command("postgres");
        command.args(["-D", &self.data()]);
        let sockets = self.folder.display();
        for setting in [
            &format!("listen_addresses={}", self.ip),
            &format!("unix_socket_directories={sockets}"),
            "shared_buffers=32MB",
            // a minute without a word from the other side would not be noticed here
            "wal_sender_timeout=10s",
            "wal_receiver_timeout=10s",
        ] {
            command.args(["-c", setting]);
        }
        let process = self.machine.spawn("postgres", command, &self.log("postgres")).unwrap();
        process.wait_line("ready to accept", PATIENCE).unwrap();
        self.process = Some(process);
        self
    }

    /// pgbench to its end.
    pub(crate) fn pgbench(&self, args: &[&str]) {
        let host = self.folder.to_str().unwrap();
        self.run("pgbench", &[&["--host", host], args, &["postgres"]].concat());
    }

    /// pgbench until it is stopped.
    pub(crate) fn load(&self, args: &[&str]) -> Process {
        let mut command = self.command("pgbench");
        command.arg("--host").arg(&self.folder).args(args).arg("postgres");
        self.machine.spawn("pgbench", command, &self.log("pgbench")).unwrap()
    }

    /// Asks the same again and again: a line each.
    pub(crate) fn watch(&self, query: &str) -> Process {
        let script = self.folder.join("watch.sql");
        fs::write(&script, format!("{query} \\watch {WATCH}\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
        let mut command = Namespace::command("stdbuf");
        command.arg("--output=L").args(self.as_user("psql"));
        command.args(["-XAtq", "--dbname", "postgres", "--host"]).arg(&self.folder).arg("--file").arg(script);
        self.machine.spawn("psql", command, &self.log("watch")).unwrap()
    }

    /// What a query says, to its end.
    pub(crate) fn query(&self, query: &str) -> String {
        let host = self.folder.to_str().unwrap();
        self.run("psql", &["-XAtq", "--dbname", "postgres", "--host", host, "--command", query]).trim().to_owned()
    }

    /// Waits until all that the primary has written is replayed here.
    pub(crate) fn wait_replayed(&self, primary: &Server<'_>) {
        let written = primary.query("SELECT pg_current_wal_lsn()");
        let done = format!("SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= '{written}'");
        let deadline = Instant::now() + PATIENCE;
        while self.query(&done) != "t" {
            assert!(Instant::now() < deadline, "never replayed {written}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = self.command(program);
        command.args(args);
        self.machine.output(command).unwrap().success().unwrap().stdout
    }

    fn command(&self, program: &str) -> Command {
        // what shared memory it has goes with its last process
        let mut command = Namespace::command("unshare");
        command.arg("--ipc").args(self.as_user(program)).current_dir(self.cluster.folder.path());
        command
    }

    /// A program of PostgreSQL's as its user, which dies with the lab too.
    fn as_user(&self, program: &str) -> Vec<String> {
        let (user, group) = (format!("--reuid={USER}"), format!("--regid={USER}"));
        let words = ["setpriv", &user, &group, "--clear-groups", "--pdeathsig", "KILL", "--"].map(str::to_owned);
        words.into_iter().chain([self.cluster.programs.join(program).display().to_string()]).collect()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    fn data(&self) -> String {
        self.folder.join(DATA).display().to_string()
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let Some(process) = self.process.take().filter(Process::is_running) else { return };
        let mut stop = self.command("pg_ctl");
        stop.args(["stop", "--mode=immediate", "--pgdata", &self.data()]);
        let _ = self.machine.output(stop);
        process.kill();
    }
}

const USER: &str = "postgres";
const DATA: &str = "data";
/// Between two looks, in seconds.
const WATCH: &str = "0.05";
const PATIENCE: Duration = Duration::from_secs(30);
