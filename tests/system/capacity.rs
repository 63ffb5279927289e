//! Many open connections cost the primary nothing: after the hand-off it is out of the way.

use croupier_tests::{
    Client, Figure, Guard, Pending, descriptors, field_of_status, figure, fixture, skip, soak_or,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Below this hard limit of descriptors 10,000 connections cannot be held by one test process.
const NEEDED: u64 = 12_000;
/// What the primary may need, in KiB, as the goals say of a release build.
const RSS_KIB_MAX: u64 = 8 * 1024;

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
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < NEEDED {
        skip!("held_connections_cost_the_primary_nothing", "{hard} descriptors, {NEEDED} needed");
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
    let (fds_after, rss_after) = (descriptors(primary).len(), rss());
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
        goal: "no worker holds over twice its share; descriptors and RSS back, RSS at most 8 MiB",
        met: most <= wanted / 2
            && fds_after <= fds_before
            && back
            && soak_or(rss_after, 0) <= RSS_KIB_MAX,
    });
}
