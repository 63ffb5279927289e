//! What many connections and many workers cost the primary in memory: connections nothing, as after the
//! hand-off it is out of the way; a worker the one page that it shares with the primary, and little else.

use croupier_tests::{
    Client, Figure, Guard, PATIENCE, Pending, descriptors, field_of_status, figure, fixture, skip,
    soak_or, wait_until,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What the primary may need, in KiB, as the goals say of a release build: 8 MB.
const RSS_KIB_MAX: u64 = 8_000_000 / 1024;
/// What a worker may add to the primary's own data, in KiB (1.8 measured).
const OWN_KIB_OF_A_WORKER_MAX: u64 = 4;

/// Accepts everything, answers nobody, closes what the client closes.
pub(crate) const HOLDER: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    struct rlimit r;
    int on = 1, s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), e = epoll_create1(0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[argc - 1])),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event v = {.events = EPOLLIN, .data.fd = s};
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 4096) || epoll_ctl(e, EPOLL_CTL_ADD, s, &v))
        return perror("start"), 1;
    for (;;) {
        struct epoll_event got[64];
        int n = epoll_wait(e, got, 64, -1);
        for (int i = 0; i < n; i++) {
            if (got[i].data.fd != s) {
                close(got[i].data.fd);
                continue;
            }
            for (int c; (c = accept4(s, 0, 0, SOCK_NONBLOCK)) >= 0;) {
                struct epoll_event w = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = c};
                epoll_ctl(e, EPOLL_CTL_ADD, c, &w);
            }
        }
    }
}
"#;

#[test]
fn held_connections_cost_the_primary_nothing() {
    let guard = Guard::new("capacity");
    // As many as are held, and some.
    let needed = soak_or(12_000, 2_400);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < needed {
        skip!("held_connections_cost_the_primary_nothing", "{hard} descriptors, {needed} needed");
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let count: usize = soak_or(10_000, 2_000);
    let port = guard.port();
    let program = fixture(&guard.write("holder.c", HOLDER), &guard.path("holder"), &[]);
    let program = program.into_os_string().into_string().unwrap();
    let croupier = guard.run(["-w", "4", "--", &program, &port.to_string()]).ready();
    let primary = u32::try_from(croupier.pid()).unwrap();
    let rss = || field_of_status(croupier.pid(), "VmRSS").unwrap();
    let (fds_before, rss_before) = (descriptors(primary).len(), rss());

    let client = Client::port(port);
    let held: Vec<Pending> = (0..count).map(|_| client.open().unwrap()).collect();
    let wanted = u64::try_from(count).unwrap();
    croupier.wait_status("all of them in the workers' hands", |status| {
        (status.open() == (0, wanted)).then_some(())
    });
    let fds_held = descriptors(primary).len();
    let mut held_by: Vec<u64> = croupier.status().ready().filter_map(|w| w.active).collect();
    held_by.sort_unstable();
    drop(held);
    croupier.wait_status("all of them closed", |status| (status.open() == (0, 0)).then_some(()));
    // A control client is closed by the primary a moment after it has ended.
    let fds_after = wait_until(PATIENCE, "as many descriptors as before", || {
        let count = descriptors(primary).len();
        if count <= fds_before { Ok(count) } else { Err((count, fds_before)) }
    });
    let rss_after = rss();
    croupier.stop_well();
    // Pages that the allocator keeps are not a leak; a connection that is kept would be far more.
    let back = rss_after <= rss_before + 512;
    let most = *held_by.last().unwrap();
    figure(&Figure {
        item: "8 held connections",
        measured: format!(
            "{count} held, by worker {held_by:?}; descriptors {fds_before}, held {fds_held}, after {fds_after}; \
             RSS {rss_before} KiB, after {rss_after} KiB"
        ),
        goal: "no worker holds over twice its share; descriptors and RSS back, RSS at most 8 MB",
        met: most <= wanted / 2 && back && soak_or(rss_after, 0) <= RSS_KIB_MAX,
    });
}

#[test]
fn each_worker_costs_the_primary_one_page_of_memory() {
    let guard = Guard::new("capacity-workers");
    let program = fixture(&guard.write("holder.c", HOLDER), &guard.path("holder"), &[]);
    let program = program.into_os_string().into_string().unwrap();
    let seen = |workers: usize| {
        let port = guard.port();
        let count = workers.to_string();
        let croupier = guard.run(["-w", &count, "--", &program, &port.to_string()]).ready();
        // One client in the hands of each: a process has no line in the page before its first claim.
        let client = Client::port(port);
        let held: Vec<Pending> = (0..workers).map(|_| client.open().unwrap()).collect();
        croupier.wait_status("one client in the hands of each", |status| {
            (status.ready().filter(|worker| worker.active == Some(1)).count() == workers)
                .then_some(())
        });
        // The status has looked at every page as closely as the loop ever does.
        let found = ["VmRSS", "RssAnon", "RssShmem"]
            .map(|field| field_of_status(croupier.pid(), field).unwrap());
        drop(held);
        croupier.stop_well();
        found
    };
    let (few, many) = (4, soak_or(256, 32));
    let [rss_few, own_few, _] = seen(few);
    let [rss_many, own_many, shared] = seen(many);
    let kib = |pages: usize| u64::try_from(pages * page_size() / 1024).unwrap();
    let own = own_many.saturating_sub(own_few);
    figure(&Figure {
        item: "8 memory by workers",
        measured: format!(
            "{few} workers: RSS {rss_few} KiB; {many}: {rss_many} KiB, of which {shared} KiB are shared \
             with them, and {own} KiB more than with {few} are the primary's own data"
        ),
        goal: "shares one page of memory with a worker, at most 4 KiB more for each; RSS at most 8 MB",
        met: shared <= kib(many)
            && own <= u64::try_from(many - few).unwrap() * OWN_KIB_OF_A_WORKER_MAX
            && soak_or(rss_many, 0) <= RSS_KIB_MAX,
    });
}

fn page_size() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap();
    usize::try_from(size).unwrap()
}
