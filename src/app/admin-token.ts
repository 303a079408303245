import { readFile } from 'node:fs/promises';
import { WaybillError } from '../core/errors.js';
import { knownSecrets } from '../telemetry/redact.js';

/** A shorter one could be guessed. */
const SHORTEST = 16;

/** The token of the file, without the line end. Rejects with WAYBILL_CONFIG_INVALID when there is no usable one. */
export async function readAdminToken(path: string): Promise<string> {
  const wrong = (problem: string, cause?: unknown): WaybillError =>
    new WaybillError('WAYBILL_CONFIG_INVALID', `admin.tokenFile ${problem}`, {
      hint: `Put a random text of at least ${SHORTEST} characters into it, such as of: openssl rand -hex 32`,
      cause,
    });
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    throw wrong(`cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unreadable'})`, error);
  }
  const token = text.replace(/\r?\n$/, '');
  if (!/^[\x21-\x7e]+$/.test(token) || token.length < SHORTEST) {
    throw wrong(`holds no token of at least ${SHORTEST} printable characters without blanks`);
  }
  knownSecrets.add([token]);
  return token;
}
