//! The harness itself: what it promises to the other tests is tested first.

use croupier_tests::{Client, Failure, Guard, fixture, hammer};

#[test]
fn the_fixture_serves_and_blocks_until_told() {
    let guard = Guard::new("fixture");
    let port = guard.port();
    let mut child = guard
        .command(env!("CARGO_BIN_EXE_one-at-a-time"))
        .arg(format!("127.0.0.1:{port}"))
        .spawn()
        .unwrap();
    let client = Client::port(port);
    let reply =
        croupier_tests::wait_until(croupier_tests::PATIENCE, "the fixture", || client.get("/"));
    assert_eq!(reply.pid(), i32::try_from(child.id()).ok());
    let fifo = guard.fifo("go");
    let blocked = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    let behind = client.send("/").unwrap();
    assert!(!behind.answered(), "it serves one at a time");
    drop(std::fs::File::options().write(true).open(&fifo).unwrap());
    assert_eq!(blocked.reply().unwrap().status, 200);
    assert_eq!(behind.reply().unwrap().status, 200);
    let many = hammer(&client, 4, 40, |_| Some("/".to_owned()));
    assert_eq!((many.replies.len(), many.failures.len()), (40, 0));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(client.get("/"), Err(Failure::Connect(_))));
}

#[test]
#[should_panic(expected = "every process of the test to be gone")]
fn the_guard_reports_a_process_that_is_left() {
    struct Sweep(std::process::Child);
    impl Drop for Sweep {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
    let guard = Guard::new("leak");
    let _sweep = Sweep(guard.command("tail").args(["-f", "/dev/null"]).spawn().unwrap());
    drop(guard);
}

#[test]
#[should_panic(expected = "descriptors and files as before the test")]
fn the_guard_reports_a_descriptor_that_is_left() {
    let guard = Guard::new("leak");
    let _left = std::fs::File::open("/dev/null").unwrap();
    drop(guard);
}

#[test]
fn a_fixture_that_does_not_compile_says_why() {
    let guard = Guard::new("fixture");
    let source = guard.write("bad.c", "int main(void) { return nothing; }");
    let to = guard.path("bad");
    let failed = std::panic::catch_unwind(|| fixture(&source, &to, &[])).unwrap_err();
    assert!(failed.downcast_ref::<String>().unwrap().contains("nothing"));
}
