//! What a push is told while nothing else is to be told.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval_at, timeout},
};

use crate::domain::{BuildNumber, QueuePlace};

/// Silence after which a sign of life is given.
const SILENCE: Duration = Duration::from_secs(8);

/// Waits for `work`, and says from time to time that it goes on.
pub(super) async fn patiently<T>(activity: &str, work: impl Future<Output = T>, output: &mpsc::Sender<Bytes>) -> T {
    // Full or gone: the work goes on either way.
    let say = |sign| drop(output.try_send(Bytes::from(sign)));
    patiently_from(SILENCE, activity, work, say).await
}

/// As [`patiently`], with the first sign after `first`.
pub(super) async fn patiently_from<T>(
    first: Duration,
    activity: &str,
    work: impl Future<Output = T>,
    say: impl Fn(String),
) -> T {
    let began = Instant::now();
    let mut signs = interval_at(began + first, SILENCE);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            result = &mut work => return result,
            _ = signs.tick() => say(format!("       … still {activity} ({} s)\n", began.elapsed().as_secs())),
        }
    }
}

/// Says where the build stands, at once and at each change and from time to time, until it no longer waits.
pub(super) async fn in_queue(
    number: BuildNumber,
    mut place: watch::Receiver<Option<QueuePlace>>,
    output: &mpsc::Sender<Bytes>,
) {
    let (began, mut mark) = (Instant::now(), "----->");
    loop {
        let Some(now) = *place.borrow_and_update() else { return };
        let waited = if mark == "----->" { String::new() } else { format!(" ({} s)", began.elapsed().as_secs()) };
        let text = format!("{mark} Build {number} is waiting: {now}{waited}\n");
        if output.send(Bytes::from(text)).await.is_err() {
            return;
        }
        mark = "      ";
        if let Ok(Err(_)) = timeout(SILENCE, place.changed()).await {
            // It has ended without having begun.
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn said(heard: &mut mpsc::Receiver<Bytes>) -> String {
        let mut text = Vec::new();
        while let Ok(bytes) = heard.try_recv() {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_hears_where_its_build_stands_until_that_begins() {
        let (output, mut heard) = mpsc::channel(32);
        let (place, follow) = watch::channel(Some(QueuePlace { ahead: 2, running: 1 }));
        let mut waiting = std::pin::pin!(in_queue(BuildNumber(7), follow, &output));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(said(&mut heard), "-----> Build 7 is waiting: 2 before it, 1 running\n");
        assert!(timeout(Duration::from_secs(17), waiting.as_mut()).await.is_err());
        let twice = "       Build 7 is waiting: 2 before it, 1 running (8 s)\n       Build 7 is waiting: 2 before it, 1 running (16 s)\n";
        assert_eq!(said(&mut heard), twice);
        place.send_replace(Some(QueuePlace { ahead: 0, running: 1 }));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(said(&mut heard), "       Build 7 is waiting: 0 before it, 1 running (17 s)\n");
        place.send_replace(None);
        assert_eq!(waiting.now_or_never(), Some(()));
        assert_eq!(said(&mut heard), "");
    }

    #[tokio::test(start_paused = true)]
    async fn long_work_gives_signs_of_life() {
        let (output, mut heard) = mpsc::channel(1);
        let work = tokio::time::sleep(Duration::from_secs(20));
        patiently("checking the push", work, &output).await;
        assert_eq!(said(&mut heard), "       … still checking the push (8 s)\n");
        let (output, mut heard) = mpsc::channel(8);
        let say = |sign| drop(output.try_send(Bytes::from(sign)));
        let work = tokio::time::sleep(Duration::from_secs(11));
        patiently_from(Duration::from_secs(2), "waiting", work, say).await;
        assert_eq!(said(&mut heard), "       … still waiting (2 s)\n       … still waiting (10 s)\n");
    }
}
