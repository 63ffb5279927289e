//! An axum application as a worker, which nobody notices being replaced: once it drains, each answer
//! says `Connection: close`, so that clients that keep their connections bring the next request to
//! its successor; connections that stay idle after that are closed, and it ends.
//!
//! ```text
//! cargo build --release -p croupier-worker --features axum --example axum
//! croupier run -w 4 -l :8080 -- target/release/examples/axum '[::]:8080'
//! ```

use axum::http::{HeaderValue, header::CONNECTION};
use axum::response::Response;
use axum::{Router, middleware::map_response, routing::get};
use croupier_worker::tokio::{TcpListener, draining};
use std::time::Duration;

/// For clients that are about to send a request on a connection that looks idle: to close it then
/// would cost them that request.
const PATIENCE: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let worker = croupier_worker::worker();
    let id = worker.map_or(0, |worker| worker.id());
    let say_goodbye = move |mut response: Response| async move {
        if worker.is_some_and(|worker| worker.is_draining()) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    };
    let app = Router::new()
        .fallback(get(move || async move { format!("worker {id}\n") }))
        .layer(map_response(say_goodbye));
    let listener = TcpListener::bind(address).await?;
    let leave = async {
        draining().await;
        tokio::time::sleep(PATIENCE).await;
    };
    axum::serve(listener, app).with_graceful_shutdown(leave).await
}
