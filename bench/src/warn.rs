//! What spoils figures, in words.
//!
//! Owns: every kind of warning and its text. Promises: each says what it means for the figures and
//! what to do; a text changes only for the better, its `kind` in `results.json` never. Never does:
//! decide when to warn (`judge`).

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

use crate::data::{Errors, Figure};

/// What spoils figures. Its `Display` says what it means and what to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Warning {
    /// The generator used nearly all that a core has (of each of its threads).
    GeneratorBusy {
        /// Share of a core, 0 to 1.
        share: f64,
    },
    /// Starts were late.
    ScheduleSlipped {
        /// Share of starts more than 1 ms late, 0 to 1.
        share: f64,
        /// The worst, ns.
        worst_ns: u64,
    },
    /// Subject and generator compete for CPUs.
    SharedCores {
        /// CPUs of the machine.
        cpus: u32,
    },
    /// Too few values for a percentile.
    FewSamples {
        /// The percentile, of 100.
        percentile: f64,
        /// How many values there are.
        n: u64,
        /// How many it takes for ten beyond the percentile.
        needed: u64,
    },
    /// Rounds differ so much that one of them was something else.
    Outliers {
        /// Of which figure.
        figure: Figure,
        /// The rounds, from 0.
        rounds: Vec<u32>,
    },
    /// Fewer rounds than a spread can be told from.
    FewRounds {
        /// How many.
        rounds: u32,
    },
    /// croupier is a debug build.
    DebugBuild,
    /// The governor changes the clock under the measurement.
    Governor {
        /// Its name.
        governor: String,
    },
    /// Other programs used the machine.
    Foreign {
        /// Share of the machine, 0 to 1.
        share: f64,
    },
    /// The subject lost clients.
    Lost {
        /// How many and how.
        errors: Errors,
        /// Of how many.
        intended: u64,
    },
    /// The engine did not keep up with the open loop's rate: its latencies grow with the length of the load.
    Overloaded {
        /// Completed per second.
        rate: f64,
        /// Asked for per second.
        intended: f64,
    },
    /// Workers and generator count connections differently.
    Miscounted {
        /// By the workers.
        workers: u64,
        /// By the generator.
        generator: u64,
    },
    /// The machine ran out of source ports or descriptors.
    OutOfPorts {
        /// How often.
        times: u64,
    },
    /// The source tree has changes that are in no commit.
    DirtyTree,
    /// A virtual machine: neighbours take CPU time that it cannot see.
    VirtualMachine,
}

impl Warning {
    /// A short name, the same for each of its kind.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::GeneratorBusy { .. } => "generator busy",
            Self::ScheduleSlipped { .. } => "schedule slipped",
            Self::SharedCores { .. } => "shared cores",
            Self::FewSamples { .. } => "few samples",
            Self::Outliers { .. } => "outliers",
            Self::FewRounds { .. } => "few rounds",
            Self::DebugBuild => "debug build",
            Self::Governor { .. } => "governor",
            Self::Foreign { .. } => "other programs",
            Self::Lost { .. } => "lost clients",
            Self::Overloaded { .. } => "overloaded",
            Self::Miscounted { .. } => "miscounted",
            Self::OutOfPorts { .. } => "out of ports",
            Self::DirtyTree => "dirty tree",
            Self::VirtualMachine => "virtual machine",
        }
    }
}

impl Display for Warning {
    #[expect(clippy::too_many_lines, reason = "one arm a warning")]
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::GeneratorBusy { share } => write!(
                f,
                "the load generator used {:.0} % of a core: rates may be its own limit and \
                 latencies its own queue; lower the rate or give it cores of its own",
                share * 100.0
            ),
            Self::ScheduleSlipped { share, worst_ns } => write!(
                f,
                "{:.1} % of starts were more than 1 ms behind schedule, the worst {}; latencies \
                 count from the intended start, so part of them is the generator's own lateness",
                share * 100.0,
                Millis(*worst_ns)
            ),
            Self::SharedCores { cpus } => write!(
                f,
                "generator, primary and workers share {cpus} {}: a cheaper engine also leaves more \
                 to the generator, and no figure is what it would be over a network; compare \
                 within a table only",
                if *cpus == 1 { "CPU" } else { "CPUs" }
            ),
            Self::FewSamples { percentile, n, needed } => write!(
                f,
                "p{percentile} stands on {n} values and wants {needed}: longer (--seconds) or more \
                 rounds (--rounds)"
            ),
            Self::Outliers { figure, rounds } => {
                let rounds: Vec<String> = rounds.iter().map(|r| (r + 1).to_string()).collect();
                write!(
                    f,
                    "round {} differs from the others by more than their spread explains \
                     ({}); repeat on a quiet machine",
                    rounds.join(", "),
                    figure.name()
                )
            }
            Self::FewRounds { rounds } => write!(
                f,
                "{rounds} {}: the spread says little; 5 or more (--rounds) make it a statement",
                if *rounds == 1 { "round" } else { "rounds" }
            ),
            Self::DebugBuild => {
                f.write_str("croupier is a debug build: build it with cargo build --release")
            }
            Self::Governor { governor } => write!(
                f,
                "the CPU governor is {governor}, so the clock changes under the measurement: \
                 cpupower frequency-set -g performance"
            ),
            Self::Foreign { share } => write!(
                f,
                "other programs took {:.0} % of the machine meanwhile: end them and repeat",
                share * 100.0
            ),
            Self::Lost { errors, intended } => {
                let all = *intended;
                write!(f, "{} of {all} clients were lost: {errors}", errors.total())
            }
            Self::Overloaded { rate, intended } => write!(
                f,
                "{rate:.0} of {intended:.0} intended connections a second were completed: the \
                 engine is beyond its capacity, and its latencies grow with the length of the load"
            ),
            Self::Miscounted { workers, generator } => write!(
                f,
                "workers counted {workers} connections, the generator {generator}: clients that \
                 gave up, or connections that never reached a worker"
            ),
            Self::OutOfPorts { times } => write!(
                f,
                "the generator ran out of source ports or descriptors {times} times: widen \
                 net.ipv4.ip_local_port_range or raise ulimit -n"
            ),
            Self::DirtyTree => {
                f.write_str("the source tree has changes that are in no commit: commit, and repeat")
            }
            Self::VirtualMachine => f.write_str(
                "a virtual machine: what its neighbours take cannot be seen; only ratios within a \
                 round are worth anything",
            ),
        }
    }
}

impl Figure {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConnectionRate => "connections/s",
            Self::RequestRate => "requests/s",
            Self::Latency => "latency",
            Self::Balance => "balance over workers",
            Self::Cpu => "CPU per connection",
            Self::Memory => "memory",
            Self::Errors => "errors",
            Self::Timeline => "timeline",
        }
    }
}

struct Millis(u64);

impl Display for Millis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} ms", self.0 / 1_000_000, self.0 / 100_000 % 10)
    }
}
