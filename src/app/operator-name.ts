import { hostname, userInfo } from 'node:os';
import { printable } from '../telemetry/visible.js';

/** Where the user of the operating system tells nobody who it is: a container, a shared account. */
const OPERATOR_VARIABLE = 'WAYBILL_OPERATOR';
const LONGEST = 150;

/**
 * Who calls this program, for the log of operators' acts: `alice@host`, with sudo `alice as waybill@host`, or what
 * WAYBILL_OPERATOR says, with the host. It is the caller's own word; the role of the database stands before it.
 */
export function operatorName(
  environment: Readonly<Record<string, string | undefined>> = process.env,
  user: () => string = systemUser,
  host = hostname(),
): string {
  const account = user();
  const given = environment[OPERATOR_VARIABLE];
  const behind = environment['SUDO_USER'];
  const name = given || (behind && behind !== account ? `${behind} as ${account}` : account);
  return printable(`${name}@${host}`).replaceAll('\n', ' ').slice(0, LONGEST);
}

/** A process in a container may run as a user that has a number alone. */
function systemUser(): string {
  try {
    return userInfo().username;
  } catch {
    return `uid ${process.getuid?.() ?? '?'}`;
  }
}
