import { createJsonRedactor } from '../telemetry/redact.js';
import type { Cli } from './program.js';

/** Writes the one document that a command answers with under --json, without secrets. */
export function sayJson(cli: Cli, document: object): void {
  cli.context.out(`${createJsonRedactor()(document, 2)}\n`);
}
