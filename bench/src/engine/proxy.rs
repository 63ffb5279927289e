//! The configurations of the proxies: what their manuals show for TCP, and no tuning beyond it.

use std::fmt::Write;
use std::path::Path;

use super::NGINX_STREAM;

/// Connections that a proxy must be able to hold.
const CONNECTIONS_MAX: u32 = 8_000;
const BACKLOG: u32 = 4096;

pub(super) fn haproxy(port: u16, workers: &[u16], sticky: bool) -> String {
    let balance = if sticky { "source" } else { "leastconn" };
    let mut text = format!(
        "global\n  maxconn {CONNECTIONS_MAX}\n\
         defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n\
         frontend clients\n  bind 127.0.0.1:{port} backlog {BACKLOG}\n  default_backend workers\n\
         backend workers\n  balance {balance}\n"
    );
    for (number, worker) in workers.iter().enumerate() {
        // Writing into a string cannot fail.
        writeln!(text, "  server w{number} 127.0.0.1:{worker}").ok();
    }
    text
}

pub(super) fn nginx(port: u16, workers: &[u16], sticky: bool, folder: &Path) -> String {
    let balance = if sticky { "hash $remote_addr consistent" } else { "least_conn" };
    let folder = folder.display();
    let mut text = format!(
        "load_module {NGINX_STREAM};\ndaemon off;\nworker_processes auto;\n\
         pid {folder}/nginx.pid;\nerror_log {folder}/nginx.log error;\n\
         worker_rlimit_nofile {};\nevents {{ worker_connections {}; }}\n\
         stream {{\n  upstream workers {{\n    {balance};\n",
        2 * CONNECTIONS_MAX + 1_000,
        2 * CONNECTIONS_MAX
    );
    for worker in workers {
        // Writing into a string cannot fail. A worker that fails is asked again at once: with nginx's default it
        // would be left alone for 10 s.
        writeln!(text, "    server 127.0.0.1:{worker} max_fails=0;").ok();
    }
    writeln!(
        text,
        "  }}\n  server {{ listen 127.0.0.1:{port} backlog={BACKLOG}; proxy_pass workers; }}\n}}"
    )
    .ok();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_is_named_and_the_rule_fits() {
        let haproxy_text = haproxy(80, &[81, 82], false);
        assert!(haproxy_text.contains("balance leastconn\n  server w0 127.0.0.1:81\n"));
        assert!(haproxy(80, &[81], true).contains("balance source"));
        let nginx_text = nginx(80, &[81, 82], false, Path::new("/tmp/x"));
        assert!(nginx_text.contains("least_conn;\n    server 127.0.0.1:81 max_fails=0;\n"));
        assert!(nginx(80, &[81], true, Path::new("/tmp/x")).contains("hash $remote_addr"));
    }
}
