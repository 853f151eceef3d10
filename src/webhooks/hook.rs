//! One webhook: what it is to be told next, and what follows from how that went.

use std::{sync::Arc, time::Duration};

use super::{WebhookSettings, message::kind_name, window::Window};
use crate::domain::{Event, Timestamp, Webhook, WebhookDelivery, WebhookMark, WebhookRetry};

/// Growth of the pause with each further failure.
const FACTOR: f64 = 3.0;
/// The pause is so much shorter or longer by chance: those that failed together are not tried again together.
const JITTER: f64 = 0.2;

/// What is known of a webhook.
pub(super) struct Hook {
    pub(super) webhook: Webhook,
    pub(super) mark: WebhookMark,
    /// Up to here no event is to be told.
    position: u64,
    /// The event that an attempt is under way for.
    pub(super) flying: Option<u64>,
    pub(super) testing: bool,
    /// The mark, or what was done, is not written down yet.
    pub(super) dirty: bool,
    pub(super) unwritten: Vec<WebhookDelivery>,
    /// It is to be disabled, for this reason.
    pub(super) disabling: Option<String>,
}

impl Hook {
    pub(super) fn new(webhook: Webhook, mark: Option<WebhookMark>) -> Self {
        let mark = match mark {
            Some(mark) if mark.generation == webhook.generation => mark,
            before => WebhookMark::of(&webhook, before.as_ref()),
        };
        let position = mark.handled;
        Self {
            webhook,
            mark,
            position,
            flying: None,
            testing: false,
            dirty: false,
            unwritten: Vec::new(),
            disabling: None,
        }
    }

    /// Takes in what the record says now.
    pub(super) fn update(&mut self, webhook: Webhook) {
        if webhook.generation != self.webhook.generation {
            self.mark = WebhookMark::of(&webhook, Some(&self.mark));
            self.position = self.mark.handled;
            self.disabling = None;
            self.dirty = true;
        }
        self.webhook = webhook;
    }

    fn wants(&self, event: &Event) -> bool {
        self.webhook.wants(event, &kind_name(event.kind))
    }

    /// The event to be told next, and since when or from when on that is due.
    pub(super) fn next(&mut self, window: &Window) -> Option<(Timestamp, Arc<Event>)> {
        let busy = self.flying.is_some() || self.dirty || self.disabling.is_some();
        if !self.webhook.enabled || busy {
            return None;
        }
        let found = window.next(self.position, |event| self.wants(event));
        let Some(event) = found else {
            self.position = self.position.max(window.horizon());
            return None;
        };
        self.position = event.id - 1;
        let retry = self.mark.retry.as_ref().filter(|retry| retry.event == event.id);
        Some((retry.map_or(event.at, |retry| retry.next_at), event))
    }

    /// The number of the attempt that would be made now at this event.
    pub(super) fn attempt(&self, event: u64) -> u32 {
        let before = self.mark.retry.as_ref().filter(|retry| retry.event == event);
        before.map_or(0, |retry| retry.attempts).saturating_add(1)
    }

    /// What waits is tried at once.
    pub(super) fn nudge(&mut self, now: Timestamp) {
        if let Some(retry) = &mut self.mark.retry {
            retry.next_at = retry.next_at.min(now);
        }
    }

    /// The event log has dropped an event.
    pub(super) fn dropped(&mut self, event: &Event) {
        if !self.webhook.enabled || event.id <= self.position || self.flying == Some(event.id) || !self.wants(event) {
            return;
        }
        self.lose(event.id);
    }

    /// What was to be tried again is given up when the event log has dropped it while nobody looked.
    pub(super) fn forget_dropped_retry(&mut self, window: &Window) {
        if let Some(retry) = self.mark.retry.as_ref().filter(|retry| !window.contains(retry.event)) {
            self.lose(retry.event);
        }
    }

    fn lose(&mut self, event: u64) {
        self.mark.missed += 1;
        self.mark.handled = self.mark.handled.max(event);
        self.position = self.position.max(event);
        self.mark.retry.take_if(|retry| retry.event <= event);
        self.dirty = true;
    }

    /// Takes in how an attempt went that began in `generation`, and was made at an event (`None`: it was a test).
    pub(super) fn settle(
        &mut self,
        (generation, event): (u64, Option<u64>),
        mut delivery: WebhookDelivery,
        window: &Window,
        settings: &WebhookSettings,
        now: Timestamp,
    ) {
        match event {
            Some(_) => self.flying = None,
            None => self.testing = false,
        }
        if let Some(event) = event.filter(|_| generation == self.webhook.generation) {
            match delivery.error.as_deref() {
                None => self.told(event, delivery.missed),
                Some(error) => {
                    let told = self.failed(event, (delivery.status, error), settings, now, window.contains(event));
                    delivery.error = Some(format!("{error}{told}"));
                }
            }
        }
        self.mark.deliveries += 1;
        delivery.number = self.mark.deliveries;
        self.unwritten.push(delivery);
        self.dirty = true;
    }

    fn told(&mut self, event: u64, missed: u64) {
        self.mark.handled = event;
        self.position = event;
        self.mark.retry = None;
        self.mark.failing_since = None;
        self.mark.missed = self.mark.missed.saturating_sub(missed);
    }

    /// Returns what is to be said beside the error.
    fn failed(
        &mut self,
        event: u64,
        (status, error): (Option<u16>, &str),
        settings: &WebhookSettings,
        now: Timestamp,
        kept: bool,
    ) -> String {
        let since = *self.mark.failing_since.get_or_insert(now);
        let attempts = self.attempt(event);
        let first_at = self.mark.retry.take().filter(|retry| retry.event == event).map_or(now, |retry| retry.first_at);
        if status == Some(410) {
            self.disabling = Some("it answered 410 Gone".to_owned());
            return "; the webhook is disabled".to_owned();
        }
        if elapsed(since, now) >= settings.disable_after {
            self.disabling = Some(format!("nothing has got through since {since:.0}; the last failure: {error}"));
            return "; nothing has got through for so long that the webhook is disabled".to_owned();
        }
        if elapsed(first_at, now) >= settings.give_up_after {
            self.lose(event);
            return format!("; given up after {attempts} attempts");
        }
        if !kept {
            self.lose(event);
            return "; given up, because the event log has dropped it".to_owned();
        }
        let next_at = now + pause(attempts, settings, rand::random());
        self.mark.retry = Some(WebhookRetry { event, attempts, first_at, next_at });
        String::new()
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    // A clock that was set back counts as none.
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// How long to wait after so many attempts; `chance` is 0..1.
pub(super) fn pause(attempts: u32, settings: &WebhookSettings, chance: f64) -> Duration {
    let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
    let plain = settings.first_retry.as_secs_f64() * FACTOR.powi(exponent);
    let bounded = plain.min(settings.longest_retry.as_secs_f64());
    Duration::from_secs_f64(bounded * (1.0 - JITTER + 2.0 * JITTER * chance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_an_hour_and_are_spread() {
        let settings = WebhookSettings::default();
        let middle: Vec<u64> = (1..=9).map(|n| pause(n, &settings, 0.5).as_secs()).collect();
        assert_eq!(middle, [5, 15, 45, 135, 405, 1215, 3600, 3600, 3600]);
        assert_eq!((pause(1, &settings, 0.0).as_millis(), pause(1, &settings, 1.0).as_millis()), (4000, 6000));
        assert_eq!(pause(u32::MAX, &settings, 0.5), settings.longest_retry);
    }
}
