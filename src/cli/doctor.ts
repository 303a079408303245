import type { Command } from 'commander';
import type { Finding } from '../app/doctor-findings.js';
import { examine } from '../app/doctor.js';
import { createJsonRedactor, createTextRedactor } from '../telemetry/redact.js';
import { EXIT, type CliContext } from './context.js';
import type { Cli } from './program.js';
import { printable, wrapped } from './text.js';

export function registerDoctor(program: Command, cli: Cli): void {
  program
    .command('doctor')
    .description(
      'Check everything that can be checked beforehand, each with its mend; exit code 4 if a check fails. Wrapped on a terminal, one line for each finding elsewhere.',
    )
    .option('--strict', 'warnings count as failures')
    .option('--json', 'as JSON, in a stable shape')
    .action(async ({ strict, json }: { strict?: boolean; json?: boolean }) => {
      const findings = await examine(cli.configuration.whole());
      const counts = countBySeverity(findings);
      const passed = counts.fail === 0 && (!strict || counts.warn === 0);
      const text = json
        ? createJsonRedactor()({ passed, counts, findings }, 2)
        : printable(createTextRedactor()(formatFindings(findings, widthOf(cli.context))));
      cli.context.out(`${text}\n`);
      if (!passed) cli.exitCode = EXIT.check;
    });
}

const USUAL_WIDTH = 80;
const LEAST_WIDTH = 40;

/** A terminal's width; elsewhere a finding is one line, and its mend another, which is what grep wants. */
function widthOf({ outIsTerminal, outColumns }: CliContext): number {
  return outIsTerminal ? Math.max(LEAST_WIDTH, outColumns?.() || USUAL_WIDTH) : Infinity;
}

type Counts = Record<Finding['severity'], number>;

function countBySeverity(findings: readonly Finding[]): Counts {
  const counts: Counts = { ok: 0, warn: 0, fail: 0 };
  for (const { severity } of findings) counts[severity]++;
  return counts;
}

const INDENT = ' '.repeat(6);
const LABELS: Readonly<Record<Finding['severity'], string>> = { ok: 'ok  ', warn: 'WARN', fail: 'FAIL' };

/** A mend that begins so is to be copied: it stays in one piece. */
const COMMAND = /^(waybill|rabbitmqctl|rabbitmq-plugins|select|alter|create|drop|grant|update|commit|rollback)\b/;

/** What is well first, what needs a hand last, where it stands above the prompt; each with its mend. */
export function formatFindings(findings: readonly Finding[], width = Infinity): string {
  const order: Finding['severity'][] = ['ok', 'warn', 'fail'];
  const lines = order.flatMap((severity) =>
    findings
      .filter((finding) => finding.severity === severity)
      .map(({ id, finding, mend }) => {
        const isSeen = severity !== 'ok' || mend === null;
        const line = wrapped(`${isSeen ? LABELS[severity] : 'note'}  ${id}: ${finding}`, width, INDENT);
        if (mend === null) return line.join('\n');
        const how = `${isSeen ? 'mend' : 'look'}: ${mend}`;
        const lines = COMMAND.test(mend) ? [how] : wrapped(how, width - INDENT.length, INDENT);
        return [...line, ...lines.map((one) => INDENT + one)].join('\n');
      }),
  );
  const { fail, warn } = countBySeverity(findings);
  const verdict =
    fail + warn === 0 ? 'Everything is well.' : `${fail} failed, ${warn} ${warn === 1 ? 'warning' : 'warnings'}.`;
  return `${lines.join('\n')}\n\n${verdict}`;
}
