import { isWaybillError } from '../core/errors.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { EXIT, type ExitCode } from './context.js';
import { printable } from './text.js';

/** The exit code that tells a script what kind of failure it was. */
export function exitCodeOf(error: unknown): ExitCode {
  if (isWaybillError(error, 'WAYBILL_CONFIG_INVALID')) return EXIT.usage;
  if (isWaybillError(error, 'WAYBILL_SCHEMA_MISSING', 'WAYBILL_SCHEMA_TOO_OLD', 'WAYBILL_SCHEMA_TOO_NEW')) {
    return EXIT.schema;
  }
  return EXIT.failed;
}

/** An error as a person reads it: what, which code, what to do. The stack only when asked for, secrets never. */
export function formatFailure(error: unknown, { verbose }: { verbose: boolean }) {
  const redact = createTextRedactor();
  const lines: string[] = [];
  if (isWaybillError(error)) {
    lines.push(`waybill: ${error.message}`, `  code: ${error.code}`);
    if (error.hint !== undefined) lines.push(`  mend: ${error.hint}`);
  } else {
    lines.push(
      `waybill: ${error instanceof Error ? error.message || error.name : 'something that is no error was thrown'}`,
    );
    if (!verbose) lines.push('  This is unexpected; run it again with --verbose to see where it happened.');
  }
  if (verbose && error instanceof Error) lines.push(...stacks(error));
  return `${lines.map((line) => printable(redact(line))).join('\n')}\n`;
}

function stacks(error: Error): string[] {
  const own = error.stack ?? '';
  return error.cause instanceof Error ? [own, 'caused by:', ...stacks(error.cause)] : [own];
}
