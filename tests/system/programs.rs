//! The servers that croupier must be able to deal to, as their authors would have written them:
//! none of them knows of croupier.
//!
//! Each recipe writes what it needs into the test's folder and says what to run; where something is
//! not on this machine it says what, and the test is skipped by name.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use croupier_tests::{Guard, deps, example, find_program, fixture, rust_library};

/// What to put behind `croupier run`.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub(crate) command: Vec<OsString>,
    pub(crate) env: Vec<(&'static str, OsString)>,
    pub(crate) flags: Vec<String>,
}

impl Program {
    fn new(words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { command: words.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    fn flags(mut self, flags: &[&str]) -> Self {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self
    }
}

/// A program for this port, or what is missing on this machine.
pub(crate) type Recipe = fn(&Guard, u16) -> Result<Program, String>;

fn needs(name: &str) -> Result<PathBuf, String> {
    find_program(name).ok_or_else(|| format!("{name} is not installed"))
}

fn needs_dep(path: &str) -> Result<PathBuf, String> {
    deps(path).ok_or_else(|| format!("tests/.deps/{path} is not there; run `make deps`"))
}

/// The test suite's own Rust server: `std::net`, one request at a time.
pub(crate) fn one_at_a_time(port: u16) -> Vec<OsString> {
    let program = env!("CARGO_BIN_EXE_one-at-a-time");
    vec![program.into(), format!("127.0.0.1:{port}").into()]
}

/// A program with two ports, in Python; every answer says its slot. Given two more words, a file and a
/// FIFO: where the file is there, slot 0 waits for the FIFO before it listens on the second.
pub(crate) fn two_ports(guard: &Guard, ports: [u16; 2]) -> Vec<String> {
    const SOURCE: &str = r#"
import os, select, socket, sys
slot, (first, second, *wait) = os.environ["CROUPIER_SLOT"], sys.argv[1:]
listeners = [socket.create_server(("127.0.0.1", int(first)))]
if slot == "0" and wait and os.path.exists(wait[0]):
    open(wait[1]).read()
listeners.append(socket.create_server(("127.0.0.1", int(second))))
while True:
    for ready in select.select(listeners, [], [])[0]:
        client, _ = ready.accept()
        client.recv(4096)
        body = f"slot={slot}\n"
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        client.close()
"#;
    let program = guard.write("two_ports.py", SOURCE).display().to_string();
    ["python3".to_owned(), program].into_iter().chain(ports.map(|port| port.to_string())).collect()
}

pub(crate) fn rust_std(_: &Guard, port: u16) -> Result<Program, String> {
    Ok(Program::new(one_at_a_time(port)))
}

pub(crate) fn python_http_server(_: &Guard, port: u16) -> Result<Program, String> {
    needs("python3")?;
    Ok(Program::new(["python3", "-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]))
}

pub(crate) fn python_blocking(guard: &Guard, port: u16) -> Result<Program, String> {
    const SOURCE: &str = r#"
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"pid={os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;
    needs("python3")?;
    let script = guard.write("blocking.py", SOURCE);
    Ok(Program::new(["python3".into(), script.into_os_string(), port.to_string().into()]))
}

pub(crate) fn python_asyncio(guard: &Guard, port: u16) -> Result<Program, String> {
    const SOURCE: &str = r#"
import asyncio, os, sys
async def serve(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    body = f"pid={os.getpid()}\n".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"#;
    needs("python3")?;
    let script = guard.write("streams.py", SOURCE);
    Ok(Program::new(["python3".into(), script.into_os_string(), port.to_string().into()]))
}

const FLASK: &str = r#"
import os
from flask import Flask
app = Flask(__name__)
@app.route("/")
def index():
    return f"pid={os.getpid()}\n"
"#;

/// A program of the virtual environment, in the folder of the Flask application. These listen before
/// they have loaded it, so they are ready only when they accept.
fn venv(guard: &Guard, program: &str, args: &[&str]) -> Result<Program, String> {
    guard.write("app.py", FLASK);
    let mut command = vec![needs_dep("venv/bin")?.join(program).into_os_string()];
    command.extend(args.iter().map(OsString::from));
    let ready = ["--ready", "accept"];
    Ok(Program::new(command).env("PYTHONDONTWRITEBYTECODE", "1").flags(&ready))
}

pub(crate) fn flask_debug(guard: &Guard, port: u16) -> Result<Program, String> {
    venv(guard, "flask", &["--app", "app", "run", "--debug", "--port", &port.to_string()])
}

pub(crate) fn gunicorn_sync(guard: &Guard, port: u16) -> Result<Program, String> {
    venv(guard, "gunicorn", &["-b", &format!("127.0.0.1:{port}"), "app:app"])
        .map(|program| program.env("HOME", guard.path("home")))
}

pub(crate) fn gunicorn_gthread(guard: &Guard, port: u16) -> Result<Program, String> {
    let address = format!("127.0.0.1:{port}");
    venv(guard, "gunicorn", &["-k", "gthread", "--threads", "4", "-b", &address, "app:app"])
        .map(|program| program.env("HOME", guard.path("home")))
}

pub(crate) fn uvicorn(guard: &Guard, port: u16) -> Result<Program, String> {
    const SOURCE: &str = r#"
import os
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = f"pid={os.getpid()}\n".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"#;
    guard.write("asgi.py", SOURCE);
    let port = port.to_string();
    venv(guard, "uvicorn", &["--lifespan", "off", "--no-access-log", "--port", &port, "asgi:app"])
}

/// It binds in one process, and its children, which are executed anew, listen.
pub(crate) fn uvicorn_workers(guard: &Guard, port: u16) -> Result<Program, String> {
    let mut program = uvicorn(guard, port)?;
    program.command.extend(["--workers".into(), "2".into()]);
    Ok(program)
}

pub(crate) fn node_http(guard: &Guard, port: u16) -> Result<Program, String> {
    const SOURCE: &str = r#"
require("http").createServer((request, response) => response.end(`pid=${process.pid}\n`))
  .listen(Number(process.argv[2]));
"#;
    needs("node")?;
    let script = guard.write("server.js", SOURCE);
    Ok(Program::new(["node".into(), script.into_os_string(), port.to_string().into()]))
}

pub(crate) fn npm_start_express(guard: &Guard, port: u16) -> Result<Program, String> {
    const SOURCE: &str = r#"
const app = require("express")();
app.get("/", (request, response) => response.send(`pid=${process.pid}\n`));
app.listen(Number(process.env.EXPRESS_PORT));
"#;
    needs("npm")?;
    let modules = needs_dep("node/node_modules")?;
    guard.write("app.js", SOURCE);
    guard.write("package.json", r#"{"name": "app", "scripts": {"start": "node app.js"}}"#);
    Ok(Program::new(["npm", "start"])
        .env("NODE_PATH", modules)
        .env("EXPRESS_PORT", port.to_string())
        .env("npm_config_cache", guard.path("npm"))
        .env("npm_config_update_notifier", "false"))
}

fn nginx(guard: &Guard, port: u16, processes: &str) -> Result<Program, String> {
    let folder = guard.path("");
    let folder = folder.display();
    let config = guard.write(
        "nginx.conf",
        &format!(
            "daemon off;\n{processes}\nuser root;\nerror_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n  access_log off;\n  client_body_temp_path {folder}/body;\n  \
             proxy_temp_path {folder}/proxy;\n  fastcgi_temp_path {folder}/fastcgi;\n  \
             uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path {folder}/scgi;\n  \
             server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"pid=$pid\\n\"; }} }}\n}}\n"
        ),
    );
    Ok(Program::new([
        needs("nginx")?.into_os_string(),
        "-e".into(),
        "stderr".into(),
        "-c".into(),
        config.into_os_string(),
        "-g".into(),
        // Every worker is an nginx of its own, with a pid file of its own.
        format!("pid {folder}/nginx-{{slot}}.pid;").into(),
    ]))
}

pub(crate) fn nginx_single(guard: &Guard, port: u16) -> Result<Program, String> {
    nginx(guard, port, "master_process off;")
}

pub(crate) fn nginx_two_workers(guard: &Guard, port: u16) -> Result<Program, String> {
    nginx(guard, port, "worker_processes 2;")
}

fn java(guard: &Guard, port: u16, class: &str, source: &str) -> Result<Program, String> {
    needs("java")?;
    let compiler = needs("javac")?;
    let file = guard.write(&format!("{class}.java"), source);
    let compiled = guard.finish({
        let mut command: Command = guard.command(compiler);
        command.arg(file);
        command
    });
    compiled.expect_code(0);
    let folder = guard.path("");
    let port = port.to_string();
    Ok(Program::new([
        "java".into(),
        "-XX:TieredStopAtLevel=1".into(),
        "-XX:-UsePerfData".into(),
        "-cp".into(),
        folder.into_os_string(),
        class.into(),
        port.into(),
    ]))
}

pub(crate) fn java_httpserver(guard: &Guard, port: u16) -> Result<Program, String> {
    const SOURCE: &str = r#"
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
public class Http {
    public static void main(String[] args) throws Exception {
        var address = new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0]));
        var server = HttpServer.create(address, 0);
        var body = ("pid=" + ProcessHandle.current().pid() + "\n").getBytes();
        server.createContext("/", exchange -> {
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
"#;
    java(guard, port, "Http", SOURCE)
}

pub(crate) fn java_serversocket(guard: &Guard, port: u16) -> Result<Program, String> {
    const SOURCE: &str = r#"
import java.io.*;
import java.net.*;
public class Plain {
    public static void main(String[] args) throws Exception {
        var body = "pid=" + ProcessHandle.current().pid() + "\n";
        var head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " + body.length() + "\r\n\r\n";
        try (var server = new ServerSocket(Integer.parseInt(args[0]))) {
            while (true) {
                try (var client = server.accept()) {
                    var in = new BufferedReader(new InputStreamReader(client.getInputStream()));
                    for (var line = in.readLine(); line != null && !line.isEmpty(); line = in.readLine()) {}
                    client.getOutputStream().write((head + body).getBytes());
                } catch (SocketException gone) {
                }
            }
        }
    }
}
"#;
    java(guard, port, "Plain", SOURCE)
}

pub(crate) fn php(guard: &Guard, port: u16) -> Result<Program, String> {
    needs("php")?;
    guard.write("web/index.php", "<?php echo 'pid=' . getmypid() . \"\\n\";");
    Ok(Program::new([
        "php".into(),
        "-S".into(),
        format!("127.0.0.1:{port}").into(),
        "-t".into(),
        guard.path("web").into_os_string(),
    ]))
}

pub(crate) fn ruby(guard: &Guard, port: u16) -> Result<Program, String> {
    const SOURCE: &str = r#"
require "socket"
server = TCPServer.new("127.0.0.1", ARGV[0].to_i)
loop do
  client = server.accept
  begin
    while (line = client.gets) && line != "\r\n" do end
    body = "pid=#{Process.pid}\n"
    client.write "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: #{body.size}\r\n\r\n#{body}"
  rescue Errno::ECONNRESET, Errno::EPIPE
  end
  client.close
end
"#;
    needs("ruby")?;
    let script = guard.write("server.rb", SOURCE);
    Ok(Program::new(["ruby".into(), script.into_os_string(), port.to_string().into()]))
}

/// Registers its socket in epoll before it listens: the registration must survive.
pub(crate) fn epoll_before_listen(guard: &Guard, port: u16) -> Result<Program, String> {
    const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    int on = 1, s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), e = epoll_create1(0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[argc - 1])),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event v = {.events = EPOLLIN, .data.fd = s};
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(s, (struct sockaddr *)&a, sizeof a) || epoll_ctl(e, EPOLL_CTL_ADD, s, &v) || listen(s, 128))
        return perror("start"), 1;
    for (;;) {
        if (epoll_wait(e, &v, 1, -1) < 1)
            continue;
        int c = accept4(s, 0, 0, 0);
        if (c < 0)
            continue;
        char in[4096], body[32], out[160];
        if (read(c, in, sizeof in) > 0) {
            int n = sprintf(body, "pid=%d\n", getpid());
            n = sprintf(out, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", n, body);
            if (write(c, out, n) != n)
                perror("write");
        }
        close(c);
    }
}
"#;
    let source = guard.write("epoll.c", SOURCE);
    let program = fixture(&source, &guard.path("epoll"), &[]);
    Ok(Program::new([program.into_os_string(), port.to_string().into()]))
}

fn shim_example(adapter: &str, name: &str, features: &str, port: u16) -> Result<Program, String> {
    let program = example(name, features).into_os_string();
    let listen = format!("127.0.0.1:{port}");
    let given: OsString = listen.clone().into();
    Ok(Program::new([program, given]).flags(&["--adapter", adapter, "-l", &listen]))
}

pub(crate) fn shim_echo(_: &Guard, port: u16) -> Result<Program, String> {
    shim_example("shim", "echo", "", port)
}

pub(crate) fn shim_pool(_: &Guard, port: u16) -> Result<Program, String> {
    shim_example("shim", "pool", "", port)
}

pub(crate) fn shim_axum(_: &Guard, port: u16) -> Result<Program, String> {
    shim_example("shim", "axum", "axum", port)
}

pub(crate) fn shim_bare(_: &Guard, port: u16) -> Result<Program, String> {
    shim_example("fd", "bare", "", port)
}

/// The C example, compiled as its first lines say.
pub(crate) fn shim_c(guard: &Guard, port: u16) -> Result<Program, String> {
    let library = rust_library();
    let folder = library.parent().unwrap().display().to_string();
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../worker-shim"));
    let include = root.join("include").display().to_string();
    let program = fixture(
        &root.join("examples/c/echo.c"),
        &guard.path("echo"),
        &["-I", &include, "-L", &folder, "-lcroupier_worker", &format!("-Wl,-rpath,{folder}")],
    );
    let listen = format!("127.0.0.1:{port}");
    Ok(Program::new([program.into_os_string(), listen.clone().into()]).flags(&[
        "--adapter",
        "shim",
        "-l",
        &listen,
    ]))
}
