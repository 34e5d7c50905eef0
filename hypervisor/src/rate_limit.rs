//! Bounds the log that a guest can cause.

use std::time::{Duration, Instant};

const BURST: u32 = 8;
const PERIOD: Duration = Duration::from_secs(5);

/// Lets a few lines through in each period.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    period_start: Option<Instant>,
    used: u32,
}

impl RateLimit {
    /// Whether one more line may be logged now.
    pub(crate) fn allow(&mut self) -> bool {
        let now = Instant::now();
        let fresh =
            self.period_start.is_none_or(|start| now.saturating_duration_since(start) >= PERIOD);
        if fresh {
            self.period_start = Some(now);
            self.used = 0;
        }
        self.used = self.used.saturating_add(1);
        self.used <= BURST
    }
}
