//! Files written here, their samples drawn afresh.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::read;
use crate::data::rng::Rng;
use crate::data::{ChannelKind, Recording};

const HEAD: &str = "Brain Vision Data Exchange Header File Version 1.0\r\n";

fn common(lines: &str) -> String {
    format!(
        "{HEAD}; comment\r\n[Common Infos]\r\nDataFile=old name.eeg\r\nMarkerFile=$b.vmrk\r\n{lines}\r\n\
         [Channel Infos]\r\nCh1=Fp1,,0.5,\u{b5}V\r\nCh2=EKG\\1 left,,0.002,mV\r\nCh3=Temp,,,C\r\n\
         [Comment]\r\nCh4=nonsense\r\n"
    )
}

struct Files(tempfile::TempDir);

impl Files {
    fn new(header: &str, data: &[u8], markers: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        fs::write(files.path(), header).unwrap();
        fs::write(files.path().with_extension("eeg"), data).unwrap();
        fs::write(files.path().with_extension("vmrk"), markers).unwrap();
        files
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("x.vhdr")
    }

    fn read(&self) -> Recording {
        read(&self.path()).unwrap()
    }
}

fn check_samples(recording: &Recording, values: &[[f64; 3]]) {
    let scales = [0.5, 0.002 * 1e3, 1.0];
    for (i, channel) in recording.channels.iter().enumerate() {
        let expect: Vec<f32> = values.iter().map(|v| (v[i] * scales[i]) as f32).collect();
        assert_eq!(channel.samples.len(), expect.len());
        for (a, b) in channel.samples.iter().zip(expect) {
            assert!((a - b).abs() <= 1e-6 * b.abs(), "{i}: {a} {b}");
        }
    }
}

#[test]
fn every_layout() {
    let mut rng = Rng::new(21, 0);
    for format in ["INT_16", "INT_32", "IEEE_FLOAT_32"] {
        for (vectorized, big) in [(false, false), (true, false), (false, true), (true, true)] {
            let values: Vec<[f64; 3]> = (0..17)
                .map(|_| std::array::from_fn(|_| rng.range(-30_000.0, 30_000.0).round()))
                .collect();
            let bytes = |v: f64| {
                let mut bytes = match format {
                    "INT_16" => (v as i16).to_le_bytes().to_vec(),
                    "INT_32" => (v as i32).to_le_bytes().to_vec(),
                    _ => (v as f32).to_le_bytes().to_vec(),
                };
                if big {
                    bytes.reverse();
                }
                bytes
            };
            let data: Vec<u8> = match vectorized {
                true => (0..3).flat_map(|c| values.iter().flat_map(move |v| bytes(v[c]))).collect(),
                false => values.iter().flatten().flat_map(|&v| bytes(v)).collect(),
            };
            let orientation = if vectorized { "VECTORIZED" } else { "MULTIPLEXED" };
            let order = if big { "YES" } else { "NO" };
            let header = common(&format!(
                "DataFormat=BINARY\nDataOrientation={orientation}\nNumberOfChannels=3\n\
                 SamplingInterval=4000\n[Binary Infos]\nBinaryFormat={format}\nUseBigEndianOrder={order}"
            ));
            let recording = Files::new(&header, &data, "").read();
            assert_eq!(recording.channels[0].sample_rate, 250.0);
            let kinds: Vec<_> = recording.channels.iter().map(|c| c.kind).collect();
            assert_eq!(kinds, [ChannelKind::Eeg, ChannelKind::Ecg, ChannelKind::Misc]);
            assert_eq!(recording.channels[1].name, "EKG, left");
            assert!(recording.notes[0].contains("old name.eeg"), "{:?}", recording.notes);
            check_samples(&recording, &values);
        }
    }
}

fn simple() -> String {
    common("NumberOfChannels=3\nSamplingInterval=2000")
}

#[test]
fn markers() {
    let text = "Brain Vision Data Exchange Marker File, Version 1.0\n[Marker Infos]\n\
        Mk1=New Segment,,1,1,0,2013\nMk2=Stimulus,S  7,6,0,0\nMk3=Comment,eyes\\1 closed,4,2,0\n\
        Mk4=New Segment,,9,1,0\nMk5=Stimulus,S1,none,1,0\nMk6=Response,,3,1,0\n";
    let recording = Files::new(&simple(), &[7; 6 * 12 + 1], text).read();
    let marks: Vec<_> =
        recording.annotations.iter().map(|a| (a.onset_s, a.duration_s, a.text.as_str())).collect();
    let expect = [
        (0.004, 0.002, "Response"),
        (0.006, 0.004, "Comment/eyes, closed"),
        (0.010, 0.0, "Stimulus/S  7"),
        (0.016, 0.0, "boundary"),
    ];
    assert_eq!(marks, expect);
    assert!(recording.notes.iter().any(|n| n.contains("1 markers have no position")));
    assert!(recording.notes.iter().any(|n| n.contains("1 bytes after")));
}

#[test]
fn values_that_are_no_numbers_are_noted() {
    let header = common(
        "NumberOfChannels=3\nSamplingInterval=1000\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32",
    );
    let data: Vec<u8> = [1.0f32, f32::NAN, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let recording = Files::new(&header, &data, "").read();
    assert!(recording.notes.iter().any(|n| n == "1 samples are not finite, in: EKG, left"));
}

#[test]
fn every_error() {
    let error = |header: &str, data: &[u8]| {
        let message = read(&Files::new(header, data, "").path()).unwrap_err().to_string();
        assert!(message.contains("remedy: "), "{message}");
        message
    };
    let data = [1; 60];
    let cases = [
        ("RIFF", "is not a BrainVision header"),
        (&common("NumberOfChannels=3\nSamplingInterval=0"), "SamplingInterval: is 0"),
        (&common("NumberOfChannels=3"), "SamplingInterval: is missing"),
        (&common("NumberOfChannels=x\nSamplingInterval=1"), "NumberOfChannels: is \"x\""),
        (
            &common("NumberOfChannels=4\nSamplingInterval=1"),
            "is 4, but [Channel Infos] describes 3",
        ),
        (&common("DataFormat=ASCII"), "DataFormat: is ASCII"),
        (&common("DataType=FREQUENCYDOMAIN"), "DataType: is FREQUENCYDOMAIN"),
        (&common("[Binary Infos]\nBinaryFormat=UINT_16"), "BinaryFormat: is UINT_16"),
        // A decimal comma moves the parts: the resolution reads 0.
        (&simple().replace("0.5", "0,5"), "its resolution is \"0\""),
        (&simple().replace("0.5", "1e99"), "its resolution is \"1e99\""),
        (
            &common("NumberOfChannels=3\nSamplingInterval=1\nDataPoints=11"),
            "promises 11 samples of 3 channels, the file holds 10",
        ),
    ];
    for (header, part) in cases {
        let message = error(header, &data);
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(error(&simple(), &[]).contains("no sample of every channel"));
    let files = Files::new(&simple(), &data, "");
    fs::remove_file(files.path().with_extension("eeg")).unwrap();
    let message = read(&files.path()).unwrap_err().to_string();
    assert!(message.contains("names old name.eeg, which is not beside"), "{message}");
    fs::write(files.path().with_extension("eeg"), "/annex/objects/MD5E-s1").unwrap();
    let message = read(&files.path()).unwrap_err().to_string();
    assert!(message.contains("never downloaded") && message.contains("x.eeg"), "{message}");
    assert!(read(Path::new("/nowhere/x.vhdr")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_headers_never_panic(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20),
        seed in any::<u64>(),
    ) {
        let mut header = simple().into_bytes();
        for (index, byte) in changes {
            let at = index.index(header.len());
            header[at] = byte;
        }
        let mut rng = Rng::new(seed, 0);
        let data: Vec<u8> = (0..rng.below(200)).map(|_| rng.next_u32() as u8).collect();
        let files = Files::new("", &data, "[Marker Infos]\nMk1=a,b,3,1,0");
        fs::write(files.path(), &header).unwrap();
        let _ = read(&files.path());
    }
}
