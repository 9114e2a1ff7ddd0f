//! From tables to classic BPF: one section an architecture, in it a binary search for the number of the call.

use super::{Action, Branch, Condition, Table, Test};

/// One instruction of classic BPF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    operand: u32,
}

impl Instruction {
    /// As the kernel has it in memory.
    fn word(self) -> u64 {
        let [a, b] = self.code.to_ne_bytes();
        let [c, d, e, f] = self.operand.to_ne_bytes();
        u64::from_ne_bytes([a, b, self.if_true, self.if_false, c, d, e, f])
    }
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Stands for "this branch does not apply" until the length of the branch is known.
const FAIL: u8 = u8::MAX;

fn plain(code: u16, operand: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, operand }
}

fn jump(code: u16, operand: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, operand }
}

fn action(action: Action) -> Instruction {
    plain(RETURN, action.0)
}

/// The whole filter.
pub(super) fn assemble(tables: &[Table]) -> Vec<u64> {
    let mut code = vec![plain(LOAD, ARCH)];
    for table in tables {
        let section = section(table);
        code.push(jump(IF_EQUAL, table.arch.number(), 1, 0));
        code.push(plain(JUMP, section.len() as u32));
        code.extend(section);
    }
    code.push(action(Action::KILL_PROCESS));
    code.into_iter().map(Instruction::word).collect()
}

/// Calls from `first` on, up to the next run, that are treated alike.
struct Run {
    first: u32,
    code: Vec<Instruction>,
}

fn section(table: &Table) -> Vec<Instruction> {
    let mut runs: Vec<Run> = Vec::new();
    let mut add = |first: u32, code: Vec<Instruction>| {
        if runs.last().is_none_or(|last| last.code != code) {
            runs.push(Run { first, code });
        }
    };
    let unknown = || vec![action(table.unknown)];
    let mut next = 0;
    for (number, branches) in &table.calls {
        if *number > next {
            add(next, unknown());
        }
        add(*number, decide(branches, table.otherwise));
        next = number + 1;
    }
    add(next, unknown());
    let mut code = vec![plain(LOAD, NUMBER)];
    code.extend(search(&runs));
    code
}

fn search(runs: &[Run]) -> Vec<Instruction> {
    let [only] = runs else {
        let (low, high) = runs.split_at(runs.len() / 2);
        let (low, high_code) = (search(low), search(high));
        let mut code = match u8::try_from(low.len()) {
            Ok(length) => vec![jump(IF_GREATER_OR_EQUAL, high[0].first, length, 0)],
            Err(_) => vec![jump(IF_GREATER_OR_EQUAL, high[0].first, 0, 1), plain(JUMP, low.len() as u32)],
        };
        code.extend(low);
        code.extend(high_code);
        return code;
    };
    only.code.clone()
}

/// The branches one after the other, each jumping to the next if a condition does not hold.
fn decide(branches: &[Branch], otherwise: Action) -> Vec<Instruction> {
    let mut code = Vec::new();
    for branch in branches {
        let mut one: Vec<_> = branch.conditions.iter().flat_map(test).collect();
        one.push(action(branch.action));
        let length = one.len();
        for (at, instruction) in one.iter_mut().enumerate() {
            let next = (length - at - 1) as u8;
            for target in [&mut instruction.if_true, &mut instruction.if_false] {
                if *target == FAIL {
                    *target = next;
                }
            }
        }
        code.extend(one);
        if branch.conditions.is_empty() {
            return code;
        }
    }
    code.push(action(otherwise));
    code
}

/// Compares a 64-bit argument, half by half; falls through if the test holds.
fn test(condition: &Condition) -> Vec<Instruction> {
    let low_offset = ARGUMENTS + 8 * u32::from(condition.argument);
    let (low_offset, high_offset) =
        if cfg!(target_endian = "little") { (low_offset, low_offset + 4) } else { (low_offset + 4, low_offset) };
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    let (load_low, load_high) = (plain(LOAD, low_offset), plain(LOAD, high_offset));
    match condition.test {
        Test::Equal => vec![load_high, jump(IF_EQUAL, high, 0, FAIL), load_low, jump(IF_EQUAL, low, 0, FAIL)],
        Test::NotEqual => vec![load_high, jump(IF_EQUAL, high, 0, 2), load_low, jump(IF_EQUAL, low, FAIL, 0)],
        Test::Masked(mask) => vec![
            load_high,
            plain(AND, (mask >> 32) as u32),
            jump(IF_EQUAL, high, 0, FAIL),
            load_low,
            plain(AND, mask as u32),
            jump(IF_EQUAL, low, 0, FAIL),
        ],
        Test::Greater | Test::GreaterOrEqual => {
            let code = if condition.test == Test::Greater { IF_GREATER } else { IF_GREATER_OR_EQUAL };
            let high_greater = jump(IF_GREATER, high, 3, 0);
            vec![load_high, high_greater, jump(IF_EQUAL, high, 0, FAIL), load_low, jump(code, low, 0, FAIL)]
        }
        Test::Less | Test::LessOrEqual => {
            let code = if condition.test == Test::Less { IF_GREATER_OR_EQUAL } else { IF_GREATER };
            let high_greater = jump(IF_GREATER, high, FAIL, 0);
            vec![load_high, high_greater, jump(IF_EQUAL, high, 0, 2), load_low, jump(code, low, FAIL, 0)]
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::Arch, *};

    /// Runs a filter the way the kernel would.
    pub(in crate::runtime::seccomp) fn run(filter: &[u64], arch: u32, number: u32, arguments: [u64; 6]) -> Action {
        let mut data = vec![number, arch, 0, 0];
        for argument in arguments {
            data.extend([argument as u32, (argument >> 32) as u32]);
        }
        let (mut accumulator, mut at) = (0u32, 0);
        loop {
            let [a, b, if_true, if_false, c, d, e, f] = filter[at].to_ne_bytes();
            let (code, operand) = (u16::from_ne_bytes([a, b]), u32::from_ne_bytes([c, d, e, f]));
            at += 1;
            let mut branch = |holds| at += usize::from(if holds { if_true } else { if_false });
            match code {
                LOAD => accumulator = data[operand as usize / 4],
                AND => accumulator &= operand,
                JUMP => at += operand as usize,
                IF_EQUAL => branch(accumulator == operand),
                IF_GREATER => branch(accumulator > operand),
                IF_GREATER_OR_EQUAL => branch(accumulator >= operand),
                RETURN => return Action(operand),
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn tests_compare_64_bits() {
        let value = 0x1_0000_0005u64;
        let samples = [0, 4, 5, 6, 0x1_0000_0000, value - 1, value, value + 1, 0x2_0000_0000, u64::MAX];
        let mask = 0xf_0000_000f;
        type Holds = fn(u64, u64) -> bool;
        let all: [(Test, Holds); 7] = [
            (Test::Equal, |a, v| a == v),
            (Test::NotEqual, |a, v| a != v),
            (Test::Less, |a, v| a < v),
            (Test::LessOrEqual, |a, v| a <= v),
            (Test::Greater, |a, v| a > v),
            (Test::GreaterOrEqual, |a, v| a >= v),
            (Test::Masked(0xf_0000_000f), |a, v| a & 0xf_0000_000f == v),
        ];
        assert_eq!(mask & value, value);
        for (test, holds) in all {
            let condition = Condition { argument: 2, test, value };
            let branch = Branch { conditions: vec![condition, condition], action: Action::LOG };
            let table = Table {
                arch: Arch::X86,
                calls: [(7, vec![branch])].into(),
                otherwise: Action::FORBIDDEN,
                unknown: Action::NO_SUCH_CALL,
            };
            let filter = assemble(&[table]);
            for sample in samples {
                let expected = if holds(sample, value) { Action::LOG } else { Action::FORBIDDEN };
                let arguments = [0, 0, sample, 0, 0, 0];
                assert_eq!(run(&filter, Arch::X86.number(), 7, arguments), expected, "{test:?} {sample:#x}");
            }
        }
    }
}
