//! A real systemd, as PID 1 of a container of this test's own, and the unit that `croupier unit` prints.
//!
//! The container has this machine's files below a layer that goes with it, its own processes, mounts
//! and control group, and this machine's loopback.

use std::path::{Path, PathBuf};
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Finished, Guard, PATIENCE, Status, children_of, croupier, find_program,
    hammer, preload, skip, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SYSTEMD: &str = "/lib/systemd/systemd";

/// $1: a folder for the layer; $2: what is /opt/croupier inside; $3: what is /gates. Everything that would
/// reach beyond the container (devices, sysctl, modules, the kernel's audit) stays out of it.
const BOOT: &str = r#"
set -eu
mount -t tmpfs none "$1"
root=$1/root
mkdir "$root" "$1/upper" "$1/work"
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
mkdir -p "$root/opt/croupier" "$root/gates"
mount --bind "$2" "$root/opt/croupier"
mount --bind "$3" "$root/gates"
cd "$root"
mount -t proc none proc
mount -o bind,ro proc/sys proc/sys
mount -t sysfs -o ro none sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=755 none run
mount -t tmpfs -o mode=1777 none tmp
mount -t tmpfs -o mode=755 none dev
for device in null zero full random urandom; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
ln -s /proc/self/fd dev/fd
own=etc/systemd/system
rm -rf "$own"/*.wants etc/systemd/journald.conf.d
: > etc/fstab
printf '[Journal]\nStorage=volatile\nAudit=no\n' > etc/systemd/journald.conf
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-modules-load.service \
    systemd-sysctl.service systemd-remount-fs.service systemd-firstboot.service systemd-logind.service \
    systemd-networkd.service systemd-timesyncd.service systemd-update-utmp.service \
    systemd-journald-audit.socket systemd-hwdb-update.service network-online.target; do
    ln -sf /dev/null "$own/$unit"
done
mkdir old
pivot_root . old
umount -l /old
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd \
    --unit=basic.target --log-target=null --show-status=no < /dev/null > /dev/null 2>&1
"#;

/// A control group that goes with everything in it.
struct Cell(PathBuf);

impl Cell {
    fn new(guard: &Guard) -> Option<Self> {
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let mut folders = mounts.iter().map(|mount| Path::new(mount).join(own));
        // Never made where it would be an ordinary folder.
        let parent = folders.find(|folder| folder.join("cgroup.procs").exists())?;
        let name = format!("croupier-test-{}-{}", guard.name(), std::process::id());
        let folder = parent.join(name);
        std::fs::create_dir(&folder).ok()?;
        Some(Self(folder))
    }

    fn remove(folder: &Path) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)?.flatten() {
            if entry.path().is_dir() {
                Self::remove(&entry.path())?;
            }
        }
        std::fs::remove_dir(folder)
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        wait_until(PATIENCE, "the cgroup to be empty", || Self::remove(&self.0));
    }
}

struct Machine<'guard> {
    guard: &'guard Guard,
    /// `unshare`, whose child is PID 1 and dies with it.
    outside: Option<Croupier<'guard>>,
    init: i32,
    _cell: Cell,
}

impl<'guard> Machine<'guard> {
    /// Or why there is none.
    fn boot(guard: &'guard Guard) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root".into());
        }
        if !Path::new(SYSTEMD).exists() || find_program("unshare").is_none() {
            return Err(format!("no {SYSTEMD}, or no unshare"));
        }
        let cell = Cell::new(guard).ok_or("no cgroup can be made in a hierarchy of v2")?;
        let programs = guard.path("programs");
        for folder in [guard.path("layer"), guard.path("gates"), programs.clone()] {
            std::fs::create_dir(folder).unwrap();
        }
        let server = Path::new(env!("CARGO_BIN_EXE_one-at-a-time"));
        for program in [&croupier(), &preload(), server] {
            let copy = guard.open_copy(program);
            std::fs::rename(&copy, programs.join(copy.file_name().unwrap())).unwrap();
        }
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", cell.0.display());
        let mut command = guard.command("sh");
        command.args(["-c", &enter, "sh", "unshare", "--mount", "--pid", "--uts", "--ipc"]);
        command.args(["--cgroup", "--fork", "--kill-child", "--propagation", "private"]);
        command.args(["sh", "-c", BOOT, "sh"]);
        command.arg(guard.path("layer")).arg(programs).arg(guard.path("gates"));
        let mut outside = guard.start(command);
        let init = wait_until(PATIENCE, "systemd to be PID 1", || {
            if outside.exited().is_some() {
                return Ok(Err(format!("no container: {}", outside.stderr().text())));
            }
            let init = children_of(outside.pid()).first().copied().ok_or("no child")?;
            let name = std::fs::read_to_string(format!("/proc/{init}/comm"));
            let name = name.map_err(|_| "gone")?;
            if name == "systemd\n" { Ok(Ok(init)) } else { Err("it is not there yet") }
        })?;
        let machine = Self { guard, outside: Some(outside), init, _cell: cell };
        wait_until(PATIENCE * 2, "systemd to have started", || {
            let state = machine.run(&["systemctl", "is-system-running"]).stdout.trim().to_owned();
            if ["running", "degraded"].contains(&state.as_str()) { Ok(()) } else { Err(state) }
        });
        Ok(machine)
    }

    /// A command in it.
    fn run(&self, words: &[&str]) -> Finished {
        let mut command = self.guard.command("nsenter");
        command.env_remove("XDG_RUNTIME_DIR");
        let init = self.init.to_string();
        command.args(["-t", &init, "--mount", "--pid", "--"]).args(words);
        self.guard.finish(command)
    }

    #[track_caller]
    fn must(&self, words: &[&str]) -> String {
        let ended = self.run(words);
        let journal = || self.run(&["journalctl", "--no-pager", "-n", "50"]).stdout;
        assert!(ended.code == Some(0), "{words:?}: {ended:?}\n{}", journal());
        ended.stdout
    }

    fn install(&self, name: &str, text: &str) {
        let file = self.guard.write(&format!("gates/{name}"), text);
        self.must(&["cp", &format!("/gates/{name}"), "/etc/systemd/system/"]);
        std::fs::remove_file(file).unwrap();
    }

    /// A property of the service.
    fn show(&self, property: &str) -> String {
        let text = self.must(&["systemctl", "show", "web", "-p", property, "--value"]);
        text.trim().to_owned()
    }

    fn status(&self) -> Option<Status> {
        let ended = self.run(&["/opt/croupier/croupier", "status", "-n", "web", "--json"]);
        serde_json::from_str(&ended.stdout).ok()
    }

    #[track_caller]
    fn wait_status(&self, what: &str, holds: impl Fn(&Status) -> bool) {
        wait_until(PATIENCE, what, || match self.status() {
            Some(status) if holds(&status) => Ok(()),
            other => Err(other.map(Box::new)),
        });
    }

    /// The service works with so many restarts behind it.
    fn wait_restarted(&self, port: u16, restarts: u32) {
        wait_until(PATIENCE, "the service to be started anew", || {
            let seen = (self.show("NRestarts"), self.show("ActiveState"));
            if seen == (restarts.to_string(), "active".to_owned()) { Ok(()) } else { Err(seen) }
        });
        assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // PID 1 of a namespace takes everybody in it along.
        kill(Pid::from_raw(self.init), Signal::SIGKILL).ok();
        if let Some(outside) = self.outside.take() {
            outside.finished(PATIENCE);
        }
    }
}

/// What `croupier unit` prints in there, for the suite's own server.
fn unit(machine: &Machine<'_>, port: u16, flags: &[&str]) -> String {
    let address = format!("127.0.0.1:{port}");
    let begin = ["/opt/croupier/croupier", "unit", "-n", "web", "-w", "2"];
    let words = [&begin[..], flags, &["--", "/opt/croupier/one-at-a-time", &address]].concat();
    machine.must(&words)
}

#[test]
fn systemd_starts_reloads_watches_and_stops_a_unit_of_ours() {
    let guard = Guard::new("systemd-unit");
    let machine = match Machine::boot(&guard) {
        Ok(machine) => machine,
        Err(why) => skip!("systemd-unit", "{why}"),
    };
    let port = guard.port();
    let client = Client::port(port);
    let printed = unit(&machine, port, &["--user", "nobody", "--soak", "0"]);
    assert!(printed.contains("\nWatchdogSec=30s\n"), "{printed}");
    machine.install("web.service", &printed.replace("WatchdogSec=30s", "WatchdogSec=10s"));
    machine.must(&["systemctl", "daemon-reload"]);

    // Type=notify: when the command is back, all are ready.
    machine.must(&["systemctl", "start", "web"]);
    assert_eq!(client.get("/").unwrap().status, 200);
    let text = machine.show("StatusText");
    assert!(text.starts_with(&format!("2 of 2 ready on 127.0.0.1:{port}")), "{text}");
    for worker in machine.status().unwrap().workers {
        let process = format!("/proc/{}", worker.pid.unwrap());
        assert_eq!(machine.must(&["stat", "-c", "%U", &process]).trim(), "nobody");
    }

    // The watchdog is fed.
    let fed = || machine.show("WatchdogTimestampMonotonic");
    let before = fed();
    wait_until(PATIENCE, "a sign of life", || if fed() == before { Err(()) } else { Ok(()) });
    assert_eq!(machine.show("NRestarts"), "0");

    // A reload by command, and one by signal: the service stays active, its workers are new.
    let generation =
        |number| move |status: &Status| status.ready().all(|w| w.generation == Some(number));
    machine.must(&["systemctl", "reload", "web"]);
    assert!(generation(2)(&machine.status().unwrap()), "{:?}", machine.status());
    machine.must(&["systemctl", "kill", "--kill-who=main", "-s", "HUP", "web"]);
    machine.wait_status("the third generation", generation(3));
    wait_until(PATIENCE, "the end of the reload", || match machine.show("ActiveState") {
        active if active == "active" => Ok(()),
        other => Err(other),
    });
    assert_eq!(machine.show("NRestarts"), "0");

    // A primary that is killed, and one that hangs, are replaced.
    machine.must(&["systemctl", "kill", "--kill-who=main", "-s", "KILL", "web"]);
    machine.wait_restarted(port, 1);
    machine.must(&["systemctl", "kill", "--kill-who=main", "-s", "STOP", "web"]);
    machine.wait_restarted(port, 2);

    // A stop waits for who is being served.
    let gate = guard.fifo("gates/slow");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&gate, open).unwrap();
    let held = client.send("/block?fifo=/gates/slow").unwrap();
    machine.wait_status("the blocker", |status| status.open().1 == 1);
    machine.must(&["systemctl", "stop", "--no-block", "web"]);
    wait_until(PATIENCE, "the stop", || match machine.show("ActiveState") {
        state if state == "deactivating" => Ok(()),
        other => Err(other),
    });
    let text = machine.show("StatusText");
    assert!(text.contains(", stopping"), "{text}");
    std::fs::write(&gate, "").unwrap();
    assert_eq!(held.reply().unwrap().status, 200);
    machine.must(&["systemctl", "stop", "web"]);
    let end = ["ActiveState", "Result", "ExecMainStatus"].map(|property| machine.show(property));
    assert_eq!(end, ["inactive", "success", "0"]);
}

#[test]
fn systemd_keeps_the_socket_and_starts_the_service_for_its_first_client() {
    let guard = Guard::new("systemd-socket");
    let machine = match Machine::boot(&guard) {
        Ok(machine) => machine,
        Err(why) => skip!("systemd-socket", "{why}"),
    };
    let port = guard.port();
    let client = Client::port(port).patience(Duration::from_secs(15));
    let socket = format!("[Socket]\nListenStream=127.0.0.1:{port}\nBacklog=512\n");
    machine.install("web.socket", &socket);
    machine.install("web.service", &unit(&machine, port, &["--user", "nobody"]));
    machine.must(&["systemctl", "daemon-reload"]);
    machine.must(&["systemctl", "start", "web.socket"]);
    assert_eq!(machine.show("ActiveState"), "inactive");

    assert_eq!(client.get("/").unwrap().status, 200);
    assert_eq!(machine.show("ActiveState"), "active");
    let listeners = machine.status().unwrap().listeners;
    let addresses: Vec<&str> = listeners.iter().map(|one| one.address.as_str()).collect();
    assert_eq!(addresses, [format!("127.0.0.1:{port}")]);

    // Who comes while it is away waits in the socket, which stays systemd's.
    let done = std::sync::atomic::AtomicBool::new(false);
    let run = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let going = || !done.load(std::sync::atomic::Ordering::Relaxed);
            hammer(&client, 2, usize::MAX, |_| going().then(|| "/".to_owned()))
        });
        let before = machine.show("MainPID");
        machine.must(&["systemctl", "restart", "web"]);
        assert_ne!(machine.show("MainPID"), before);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        load.join().unwrap()
    });
    assert_eq!(run.failures, []);
    assert!(!run.replies.is_empty());
    machine.must(&["systemctl", "stop", "web.socket", "web.service"]);
    assert_eq!(machine.show("Result"), "success");
}
