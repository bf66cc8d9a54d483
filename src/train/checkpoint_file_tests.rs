//! Tests of the checkpoint file: round trips, hostile bytes, full disks, kills.

use super::*;
use crate::data::rng::Rng;
use proptest::prelude::*;
use std::process::{Command, Stdio};
use std::time::Duration;

const DTYPES: [Dtype; 6] = [Dtype::F32, Dtype::F64, Dtype::BF16, Dtype::F16, Dtype::I32, Dtype::U8];

/// A checkpoint of random names, types, odd shapes (scalars and empty ones too) and bytes.
fn random(seed: u64) -> Checkpoint<'static> {
    let mut rng = Rng::new(seed, 11);
    let mut made = Checkpoint::default();
    for i in 0..1 + rng.below(9) {
        let dtype = DTYPES[rng.below(DTYPES.len())];
        let shape: Vec<usize> = (0..rng.below(4)).map(|_| rng.below(8)).collect();
        let size = size_of(dtype, &shape).expect("small");
        let bytes: Vec<u8> = (0..size).map(|_| rng.next_u32() as u8).collect();
        let name = format!("layers.{}.wé\"{i}", rng.below(20));
        made.insert(&name, dtype, &shape, bytes).expect("new name");
    }
    for i in 0..rng.below(5) {
        made.metadata.insert(format!("key {i}\n"), format!("{:x}", rng.next_u64()));
    }
    made
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn reads_what_it_wrote(seed: u64) {
        let (folder, made) = (folder(), random(seed));
        let path = folder.path().join("a.safetensors");
        made.save(&path)?;
        prop_assert_eq!(&Checkpoint::load(&path)?, &made);
        // The format's own reader agrees, and the bytes do not depend on the order of insertion.
        let bytes = std::fs::read(&path)?;
        let read = safetensors::SafeTensors::deserialize(&bytes)?;
        prop_assert_eq!(read.len(), made.tensors.len());
        for (name, tensor) in &made.tensors {
            let view = read.tensor(name)?;
            prop_assert_eq!(view.data(), tensor.bytes.as_ref());
            prop_assert_eq!((view.dtype(), view.shape()), (tensor.dtype, tensor.shape.as_slice()));
        }
        let mut again = Checkpoint { metadata: made.metadata.clone(), ..Default::default() };
        for (name, tensor) in made.tensors.iter().rev() {
            again.insert(name, tensor.dtype, &tensor.shape, tensor.bytes.to_vec())?;
        }
        again.save(&path)?;
        prop_assert_eq!(std::fs::read(&path)?, bytes);
        prop_assert_eq!(std::fs::read_dir(folder.path())?.count(), 1);
    }

    /// Cut anywhere, or with bytes overwritten anywhere, a file is refused or read, never a panic;
    /// cut, it is always refused.
    #[test]
    fn survives_hostile_bytes(seed: u64, cut: prop::sample::Index, at: prop::sample::Index,
                              put in proptest::collection::vec(any::<u8>(), 1..20)) {
        let folder = folder();
        let path = folder.path().join("a.safetensors");
        random(seed).save(&path)?;
        let bytes = std::fs::read(&path)?;
        std::fs::write(&path, &bytes[..cut.index(bytes.len())])?;
        let error = Checkpoint::load(&path).expect_err("cut short").to_string();
        prop_assert!(error.contains("a.safetensors") && error.contains("remedy"), "{}", error);
        let mut spoilt = bytes;
        let start = at.index(spoilt.len());
        for (to, from) in spoilt[start..].iter_mut().zip(put) {
            *to = from;
        }
        std::fs::write(&path, &spoilt)?;
        let _ = Checkpoint::load(&path);
    }
}

/// The format's reader in Python finds the same names, types, shapes, numbers and metadata.
#[test]
fn python_reads_a_checkpoint() {
    let python = std::env::var("ENGINE_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let probe = Command::new(&python).args(["-c", "import numpy, safetensors.numpy"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: {python} has no safetensors and numpy (set ENGINE_PYTHON)");
    }
    let mut rng = Rng::new(std::process::id().into(), 3);
    let floats: Vec<f64> = (0..15).map(|_| rng.normal()).collect();
    let whole: Vec<i32> = (0..7).map(|_| rng.next_u32() as i32).collect();
    let mut made = Checkpoint::default();
    made.metadata.insert("step".to_string(), "12 \"é\"".to_string());
    let bytes = bytemuck::cast_slice(&whole).to_vec();
    made.insert("a.count", Dtype::I32, &[7], bytes).expect("fits");
    let bytes = bytemuck::cast_slice(&floats).to_vec();
    made.insert("z.weight", Dtype::F64, &[3, 5], bytes).expect("fits");
    let folder = folder();
    let path = folder.path().join("a.safetensors");
    made.save(&path).expect("saved");
    let script = "import json, sys\n\
        from safetensors import safe_open\n\
        f = safe_open(sys.argv[1], 'numpy')\n\
        t = {k: f.get_tensor(k) for k in f.keys()}\n\
        t = {k: [str(v.dtype), v.shape, v.ravel().tolist()] for k, v in t.items()}\n\
        print(json.dumps([f.metadata(), t]))";
    let output = Command::new(&python).args(["-c", script]).arg(&path).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let tensors = serde_json::json!({
        "a.count": ["int32", [7], whole],
        "z.weight": ["float64", [3, 5], floats],
    });
    assert_eq!(read, serde_json::json!([made.metadata, tensors]));
}

#[test]
fn headers_that_lie_are_refused() {
    let folder = folder();
    let path = folder.path().join("a.safetensors");
    let tensor = |offsets: &str, shape: &str| {
        format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let big = u64::MAX / 8;
    let huge: Vec<String> = (0..8_u64)
        .map(|i| {
            let (from, to) = (i * big, (i + 1) * big);
            format!(r#""t{i}":{{"dtype":"U8","shape":[{big}],"data_offsets":[{from},{to}]}}"#)
        })
        .collect();
    for header in [
        tensor("[0,4]", "[2]"),
        tensor("[0,16]", "[2]"),
        tensor("[8,0]", "[2]"),
        tensor("[0,18446744073709551615]", "[4611686018427387904]"),
        tensor("[0,8]", "[18446744073709551615,18446744073709551615]"),
        tensor("[0,8]", "[-2]"),
        format!("{{{}}}", huge.join(",")),
        "[]".to_string(),
        String::new(),
        "{".repeat(5000),
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        std::fs::write(&path, &bytes).expect("written");
        assert!(Checkpoint::load(&path).is_err(), "{header}");
    }
    for bytes in [vec![], vec![1; 7], vec![255; 64], b"PK\x03\x04 a zip file instead".to_vec()] {
        std::fs::write(&path, &bytes).expect("written");
        let error = Checkpoint::load(&path).expect_err("no safetensors").to_string();
        assert!(error.contains("no safetensors file"), "{error}");
    }
    assert!(Checkpoint::load(folder.path()).is_err());
    let absent = Checkpoint::load(&folder.path().join("absent")).expect_err("absent").to_string();
    assert!(absent.contains("absent"), "{absent}");
}

#[test]
fn another_model_is_told_by_its_differences() {
    let mut made = Checkpoint::default();
    for (name, shape) in [("embed.weight", [3, 4]), ("head.weight", [2, 4]), ("old.bias", [1, 4])] {
        made.insert(name, Dtype::F32, &shape, vec![7; shape[0] * shape[1] * 4]).expect("fits");
    }
    let path = Path::new("best.safetensors");
    let model: [(&str, Dtype, &[usize]); 3] = [
        ("embed.weight", Dtype::F32, &[3, 4]),
        ("head.weight", Dtype::F32, &[1, 4]),
        ("new.bias", Dtype::F32, &[4]),
    ];
    let error = made.expect_model(path, model).expect_err("another model").to_string();
    for part in [
        "best.safetensors",
        "1 missing: new.bias F32 [4]",
        "1 not in the model: old.bias",
        "head.weight is F32 [2, 4] here and F32 [1, 4] in the model",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(!error.contains("embed"), "{error}");
    let own: Vec<(&str, Dtype, &[usize])> =
        made.tensors.iter().map(|(name, t)| (name.as_str(), t.dtype, t.shape.as_slice())).collect();
    made.expect_model(path, own).expect("its own tensors");
    let missing = made.tensor(path, "nose").expect_err("missing").to_string();
    assert!(missing.contains("nose") && missing.contains("embed.weight"), "{missing}");
    assert!(made.insert("x", Dtype::F32, &[2], vec![0; 7]).is_err());
    assert!(made.insert("x", Dtype::F32, &[usize::MAX, 3], vec![]).is_err());
    assert!(made.insert("old.bias", Dtype::U8, &[1], vec![0]).is_err());
    assert!(made.insert(METADATA_KEY, Dtype::U8, &[1], vec![0]).is_err());
}

/// A checkpoint of `kilobytes` whose every byte is the number of its save.
fn numbered(save: u8, kilobytes: usize) -> Checkpoint<'static> {
    let mut made = Checkpoint::default();
    made.metadata.insert("save".to_string(), save.to_string());
    made.insert("w", Dtype::U8, &[kilobytes, 1024], vec![save; kilobytes * 1024]).expect("fits");
    made
}

#[test]
fn a_full_disk_leaves_the_earlier_file_whole() {
    let folder = folder();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(folder.path())
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: a full disk (mounting a small tmpfs needs root)");
        return;
    }
    let path = folder.path().join("last.safetensors");
    let small = numbered(3, 16).save(&path);
    let full = numbered(4, 100).save(&path);
    let (left, kept) =
        (std::fs::read_dir(folder.path()).map(Iterator::count), Checkpoint::load(&path));
    let unmounted = Command::new("umount").arg(folder.path()).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    small.expect("16 KiB fit");
    let error = full.expect_err("100 KiB do not").to_string();
    assert!(error.contains("last.safetensors") && error.contains("free space"), "{error}");
    assert_eq!(kept.expect("still whole"), numbered(3, 16));
    assert_eq!(left.expect("listed"), 1, "the temporary file is gone");
}

#[test]
fn a_folder_that_is_missing_or_closed_is_named() {
    let folder = folder();
    let path = folder.path().join("absent").join("last.safetensors");
    let error = numbered(1, 1).save(&path).expect_err("no folder").to_string();
    assert!(error.contains("absent") && error.contains("make the folder"), "{error}");
    // A folder in the place of the file: the rename fails, and the temporary file must go.
    let path = folder.path().join("taken");
    std::fs::create_dir_all(path.join("inner")).expect("made");
    assert!(numbered(1, 1).save(&path).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1);
    #[cfg(target_os = "linux")]
    {
        let error = numbered(1, 1).save(Path::new("/proc/x.safetensors")).expect_err("closed");
        assert!(error.to_string().contains("remedy"), "{error}");
    }
}

const CHILD: &str = "ENGINE_TEST_CHECKPOINT_CHILD";

/// Not a test of its own: saves 200 times, until it is killed.
#[test]
#[ignore = "started and killed by the test below"]
fn child() {
    let Ok(path) = std::env::var(CHILD) else { return };
    for save in 0..200 {
        numbered(save, 256).save(Path::new(&path)).expect("saved");
    }
}

#[test]
fn a_kill_never_leaves_a_broken_file() {
    let folder = folder();
    let path = folder.path().join("last.safetensors");
    numbered(255, 256).save(&path).expect("saved");
    let mut rng = Rng::new(std::process::id().into(), 5);
    let (mut torn, mut seen) = (0, BTreeSet::new());
    for _ in 0..25 {
        let mut child = Command::new(std::env::current_exe().expect("this test's program"))
            .args(["--exact", "train::checkpoint_file::tests::child", "--ignored"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .spawn()
            .expect("the child starts");
        std::thread::sleep(Duration::from_micros(2_000 + rng.below(120_000) as u64));
        child.kill().expect("killed");
        child.wait().expect("ended");
        let kept = Checkpoint::load(&path).expect("whole after a kill");
        let save: u8 = kept.metadata["save"].parse().expect("a number");
        assert_eq!(kept, numbered(save, 256));
        torn += usize::from(temporary_for(&path).exists());
        seen.insert(save);
    }
    eprintln!("25 kills, {torn} in the middle of writing, saves seen last: {seen:?}");
    assert!(seen.len() > 1, "the child was always killed before its first save");
    numbered(9, 256).save(&path).expect("a later save takes over the temporary file");
    assert!(!temporary_for(&path).exists());
}
