//! The generator against servers whose behaviour is known.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use croupier_bench::data::{Errors, Sample};
use croupier_bench::judge::{self, Aside};
use croupier_bench::load::{Arrivals, Common, OpenLoad, RequestKind, Seen};
use croupier_bench::mock::{Fate, Mock};
use croupier_bench::warn::Warning;
use croupier_bench::workload;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn load(target: SocketAddr, rate: f64, length: Duration) -> OpenLoad {
    OpenLoad {
        common: Common {
            target,
            length,
            sources: 16,
            patience: Duration::from_secs(5),
            seed: 3,
            timeline: Some(ms(100)),
            begun: None,
        },
        rate,
        arrivals: Arrivals::Even,
        kinds: vec![RequestKind { path: "/".to_owned(), weight: 1.0 }],
        open_max: 1_000,
        sticky: false,
    }
}

fn at(seen: &Seen, percentile: f64) -> Duration {
    Duration::from_nanos(seen.recorder.total().value_at_percentile(percentile))
}

/// A server never answers earlier than its law, so the lower bounds are exact; the upper ones leave room
/// for a machine that is busy with other things.
#[test]
fn a_known_law_gives_back_its_percentiles() {
    let law = |n: u64| match n % 100 {
        0 => Fate::After(ms(400)),
        n if n < 10 => Fate::After(ms(100)),
        _ => Fate::After(ms(5)),
    };
    let mock = Mock::start(law).unwrap();
    let seen = load(mock.address(), 800.0, Duration::from_secs(1)).run().unwrap();
    assert_eq!((seen.intended, seen.connections, seen.errors.total()), (799, 799, 0));
    for (percentile, from, to) in [(50.0, 5, 400), (95.0, 100, 800), (99.5, 400, 4_000)] {
        let found = at(&seen, percentile);
        // A recorded value is at most a thousandth below the measured one.
        let floor = ms(from).mul_f64(0.999);
        assert!((floor..ms(to)).contains(&found), "p{percentile}: {found:?}");
    }
    assert_eq!(seen.recorder.total().len(), 799);
    let course: u64 = seen.timeline.iter().map(|step| step.completed).sum();
    assert_eq!(course, 799, "each stands in one step of the course");
    assert!(seen.cpu_ns > 0 && seen.schedule.open_max > 1);
}

/// One client that waits for each answer before it asks again, and a server that does nothing for half
/// a second, once: 100 requests were to be asked meanwhile, and are one bad answer to a generator that
/// forgets its schedule.
#[test]
fn coordinated_omission_is_caught() {
    let law = |n| if n == 20 { Fate::Stall(ms(500)) } else { Fate::After(Duration::ZERO) };
    let mock = Mock::start(law).unwrap();
    let one = OpenLoad { open_max: 1, ..load(mock.address(), 200.0, Duration::from_secs(1)) };
    let seen = one.run().unwrap();
    assert_eq!((seen.connections, seen.errors.total()), (199, 0));
    let naive = seen.recorder.naive();
    assert!(naive.max() >= 499_000_000, "it saw the one: {}", naive.max());
    let forgot = Duration::from_nanos(naive.value_at_percentile(95.0));
    assert!(forgot < ms(100), "naively all is well: {forgot:?}");
    // Of 199, 100 were due in the stall; half of those waited for a quarter of a second and more.
    assert!(at(&seen, 75.0) >= ms(200), "{:?}", at(&seen, 75.0));
    assert!(seen.schedule.late >= 90, "and it knows that it was late: {:?}", seen.schedule);
}

fn losing(fate: Fate) -> Seen {
    let law = move |n| if n % 100 == 50 { fate } else { Fate::After(Duration::ZERO) };
    let mock = Mock::start(law).unwrap();
    let mut load = load(mock.address(), 1_000.0, ms(500));
    load.common.patience = ms(1_500);
    load.run().unwrap()
}

#[test]
fn one_lost_client_in_a_hundred_is_reported_by_its_kind() {
    let five = |change: fn(&mut Errors)| {
        let mut errors = Errors::default();
        change(&mut errors);
        errors
    };
    for (fate, errors) in [
        (Fate::Reset, five(|e| e.reset = 5)),
        (Fate::CutShort, five(|e| e.short = 5)),
        (Fate::Silence, five(|e| e.timeout = 5)),
    ] {
        let seen = losing(fate);
        assert_eq!((seen.intended, seen.connections), (499, 494), "{fate:?}");
        assert_eq!(seen.errors, errors, "{fate:?}");
        let failed: u64 = seen.timeline.iter().map(|step| step.errors).sum();
        assert_eq!(failed, 5, "{fate:?}: the course shows when");
        let sample = Sample {
            seconds: seen.seconds,
            intended: seen.intended,
            connections: seen.connections,
            errors: seen.errors,
            ..Sample::default()
        };
        let paced = workload::catalogue(2).into_iter().find(|w| w.info.id == "short-paced");
        let warnings = judge::of_sample(&sample, &paced.unwrap(), Aside::default());
        let expected = Warning::Lost { errors, intended: 499 };
        assert!(warnings.contains(&expected), "{fate:?}: {warnings:?}");
        assert!(expected.to_string().starts_with("5 of 499 clients were lost: 5 "));
    }
}

#[test]
fn nobody_listens_is_refused() {
    let address = Mock::null().unwrap().address();
    let seen = load(address, 100.0, ms(100)).run().unwrap();
    assert_eq!(seen.connections, 0);
    assert_eq!(seen.errors, Errors { refused: seen.intended, ..Errors::default() });
}

#[test]
fn what_never_started_is_counted() {
    let mock = Mock::start(|_| Fate::Silence).unwrap();
    let mut two = load(mock.address(), 100.0, ms(200));
    two.open_max = 2;
    two.common.patience = ms(300);
    let seen = two.run().unwrap();
    // Two at a time, each for as long as a client waits; the rest finds no room until the end.
    let timeout = seen.errors.timeout;
    assert_eq!((seen.intended, seen.connections), (19, 0));
    assert!(timeout >= 2 && seen.schedule.unstarted > 0, "{:?}", seen.schedule);
    assert_eq!(timeout + seen.schedule.unstarted, 19);
    assert_eq!(seen.errors, Errors { timeout, ..Errors::default() });
}
