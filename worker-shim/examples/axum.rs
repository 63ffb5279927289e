//! An axum application as a worker.
//!
//! ```text
//! cargo build --release -p croupier-worker --features axum --example axum
//! croupier run -w 4 -l :8080 -- target/release/examples/axum '[::]:8080'
//! ```

use axum::{Router, routing::get};
use croupier_worker::tokio::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let id = croupier_worker::worker().map_or(0, |worker| worker.id());
    let app = Router::new().fallback(get(move || async move { format!("worker {id}\n") }));
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, app).await
}
