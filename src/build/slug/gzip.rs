//! Parallel gzip that always gives the same bytes: fixed blocks, each a gzip member of its own (RFC 1952, 2.2), which every gzip reader
//! takes as one stream.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use flate2::{Compression, GzBuilder};

/// Uncompressed size of a member.
const BLOCK: usize = 1 << 20;
/// Fastest: the registry is near, and `docker push` itself is slow for its gzip.
const LEVEL: Compression = Compression::new(1);
/// As many threads as the work is worth on a small machine.
const THREADS: usize = 2;

type Job = (Vec<u8>, mpsc::SyncSender<io::Result<Vec<u8>>>);

/// Compresses all of `input` to `output`.
pub fn compress(mut input: impl Read, output: &mut impl Write) -> io::Result<()> {
    let first = next_block(&mut input)?;
    if first.len() < BLOCK {
        // The common case of a small source layer is not worth a thread.
        return output.write_all(&member(&first)?);
    }
    thread::scope(|scope| {
        let (jobs, queue) = mpsc::sync_channel::<Job>(THREADS);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let queue = queue.clone();
            scope.spawn(move || work(&queue));
        }
        drop(queue);
        let mut pending = VecDeque::new();
        let mut block = first;
        while !block.is_empty() {
            let (result, done) = mpsc::sync_channel(1);
            jobs.send((block, result)).map_err(|_| io::Error::other("the compressing threads have ended"))?;
            pending.push_back(done);
            if pending.len() > 2 * THREADS {
                write_next(&mut pending, output)?;
            }
            block = next_block(&mut input)?;
        }
        drop(jobs);
        while !pending.is_empty() {
            write_next(&mut pending, output)?;
        }
        Ok(())
    })
}

fn write_next(pending: &mut VecDeque<mpsc::Receiver<io::Result<Vec<u8>>>>, output: &mut impl Write) -> io::Result<()> {
    match pending.pop_front().map(|done| done.recv()) {
        Some(Ok(member)) => output.write_all(&member?),
        Some(Err(_)) => Err(io::Error::other("a compressing thread has ended")),
        None => Ok(()),
    }
}

fn work(queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        // A poisoned lock only means that the other thread has ended; the queue is whole.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((block, result)) = job else { return };
        // The other side has given up: then so does this one.
        if result.send(member(&block)).is_err() {
            return;
        }
    }
}

fn next_block(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut block = Vec::with_capacity(BLOCK);
    input.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
    Ok(block)
}

fn member(block: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::with_capacity(block.len() / 2), LEVEL);
    encoder.write_all(block)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::MultiGzDecoder;
    use proptest::prelude::*;

    fn data(length: usize) -> Vec<u8> {
        (0..length as u64).map(|n| ((n * n) >> 7) as u8 & 0x3f).collect()
    }

    #[test]
    fn any_length_comes_back_and_the_bytes_are_always_the_same() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 7 * BLOCK + 12_345] {
            let input = data(length);
            let (mut one, mut two) = (Vec::new(), Vec::new());
            compress(&input[..], &mut one).unwrap();
            compress(&input[..], &mut two).unwrap();
            assert!(one == two, "{length}: not the same twice");
            let mut back = Vec::new();
            MultiGzDecoder::new(&one[..]).read_to_end(&mut back).unwrap();
            assert!(back == input, "{length}: not what went in");
        }
    }

    #[test]
    fn an_unreadable_input_is_an_error_and_no_hang() {
        let input = data(3 * BLOCK);
        let broken = input.chain(Broken);
        assert!(compress(broken, &mut Vec::new()).is_err());
    }

    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn small_inputs_come_back(input in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let mut packed = Vec::new();
            compress(&input[..], &mut packed).unwrap();
            let mut back = Vec::new();
            MultiGzDecoder::new(&packed[..]).read_to_end(&mut back).unwrap();
            prop_assert_eq!(back, input);
        }
    }
}
