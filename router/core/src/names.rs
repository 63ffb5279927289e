//! The names under which `croupier events` tells of what the core reports.

use crate::event::Report;

impl Report {
    /// The event's name; `None`: it is for the log only.
    #[must_use]
    pub fn event_name(&self) -> Option<&'static str> {
        let name = match self {
            Self::Forked { .. } => "fork",
            Self::Online { .. } => "online",
            Self::NotForked { .. } => "fork-failed",
            Self::Listens { .. } => "listening",
            Self::Disconnected { .. } => "disconnect",
            Self::Exited { .. } => "exit",
            Self::Scaled { .. } => "scaled",
            Self::Paused { .. } => "paused",
            Self::Resumed { .. } => "resumed",
            Self::Stopping { .. } => "stop",
            Self::Ready { .. } => "ready",
            Self::SlotFailed { .. } => "slot-failed",
            Self::Late { .. } => "late",
            Self::Recovered { .. } => "recovered",
            Self::Stole { .. } => "stolen",
            Self::Hung { .. } => "hung",
            Self::ReloadBegan { .. } => "reload-started",
            Self::ReloadDone { .. } => "reload-done",
            Self::ReloadFailed { .. } => "reload-failed",
            Self::ScaleRefused { .. }
            | Self::PauseRefused { .. }
            | Self::AllReady
            | Self::NotReadyInTime { .. }
            | Self::WentToBackground { .. }
            | Self::Died { .. }
            | Self::BackingOff { .. }
            | Self::SlotStopped { .. }
            | Self::SlotDone { .. }
            | Self::AllDone
            | Self::Salvaged { .. }
            | Self::RecycleBegan { .. }
            | Self::Recycled { .. }
            | Self::RecycleFailed { .. }
            | Self::NeedsMore { .. }
            | Self::ShedBegan { .. }
            | Self::ShedEnded { .. }
            | Self::NumbersDoNotFit { .. }
            | Self::DrainCut { .. }
            | Self::Drained { .. }
            | Self::Drains { .. }
            | Self::ReloadQueued
            | Self::ReloadRefused
            | Self::Parked { .. }
            | Self::Unparked { .. }
            | Self::Soaking { .. }
            | Self::ReloadOver { .. } => return None,
        };
        Some(name)
    }
}
