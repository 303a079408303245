import { CommanderError } from 'commander';
import type { Cli } from './program.js';
import { EXIT } from './context.js';

/** Asks before something that cannot be taken back. Without a terminal --yes is needed; anything but yes ends the command. */
export async function confirm(cli: Cli, question: string, yes: boolean | undefined): Promise<void> {
  if (yes) return;
  const { ask, err } = cli.context;
  if (!ask) {
    err(`${question}\nNobody can answer here; give --yes.\n`);
    throw new CommanderError(EXIT.usage, 'waybill.unconfirmed', 'not confirmed');
  }
  const answer = await ask(`${question} [y/N] `);
  if (/^y(es)?$/i.test(answer.trim())) return;
  err('Nothing was changed.\n');
  throw new CommanderError(EXIT.usage, 'waybill.unconfirmed', 'not confirmed');
}
