//! Replaces pods at a fixed rate, each step by step as a rolling update does.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::model::{Model, Stage};

/// A new pod is ready after this long, and the one that it replaces then begins to end.
const START: Duration = Duration::from_secs(1);

/// A pod that ends is gone after this long.
const END: Duration = Duration::from_secs(1);

/// Replacements between an object and the next one of the same Service: a prime, so that all Services have their turn.
const STRIDE: u32 = 7919;

/// A pod that takes the place of another one.
struct Replacement {
    due: Instant,
    service: u32,
    new: u32,
    old: u32,
}

/// Replaces `rate` pods a second until told to stop; ends when the last one is gone. Returns how many.
pub async fn run(model: &Arc<Model>, rate: f64, first_number: u32, stop: &AtomicBool) -> u32 {
    let begun = Instant::now();
    let mut waiting: VecDeque<Replacement> = VecDeque::new();
    let mut ending: VecDeque<Replacement> = VecDeque::new();
    let mut replaced = 0;
    let mut begins = 0_u32;
    loop {
        let now = Instant::now();
        let wanted = now.duration_since(begun).as_secs_f64() * rate;
        let stops = stop.load(Ordering::Relaxed);
        while !stops && f64::from(begins) < wanted.floor() {
            let service = begins.wrapping_mul(STRIDE) % model.sizes.services;
            if let Some(old) = model.oldest(service) {
                let new = first_number + begins;
                model.create(new, service);
                waiting.push_back(Replacement {
                    due: now + START,
                    service,
                    new,
                    old,
                });
            }
            begins += 1;
        }
        while let Some(mut next) = waiting.pop_front_if(|next| next.due <= now) {
            model.set_stage(next.new, next.service, Stage::Ready);
            model.set_stage(next.old, next.service, Stage::Draining);
            next.due = now + END;
            ending.push_back(next);
        }
        while let Some(next) = ending.pop_front_if(|next| next.due <= now) {
            model.delete(next.old, next.service);
            replaced += 1;
        }
        if stops && waiting.is_empty() && ending.is_empty() {
            return replaced;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
