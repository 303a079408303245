import { isIP } from 'node:net';
import type { Parsed } from './quantities.js';

/** Where the admin HTTP server listens; port 0 lets the system choose. */
export interface ListenAddress {
  host: string;
  port: number;
}

const MEND = 'write 127.0.0.1:9809, [::1]:9809, 0.0.0.0:9809, or off';

/** An IP address with a port, or `off`. Why no names: which of its addresses is bound would be left to chance. */
export function checkListen(raw: unknown): Parsed<string> {
  if (raw === 'off' || (typeof raw === 'string' && parseListen(raw))) return { value: raw };
  // YAML reads a bare `off` as false in its older version, and a person may write it so.
  if (raw === false) return { value: 'off' };
  return { problem: 'is not an IP address with a port', mend: MEND };
}

/** The address of `127.0.0.1:9809`, `[::1]:9809` or `localhost:9809`; undefined for anything else, `off` among it. */
export function parseListen(text: string): ListenAddress | undefined {
  const [, bracketed, plain, digits = ''] = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text) ?? [];
  const host = plain === 'localhost' ? '127.0.0.1' : (bracketed ?? plain ?? '');
  const port = Number(digits);
  if (isIP(host) !== (bracketed === undefined ? 4 : 6) || port > 65_535) return undefined;
  return { host, port };
}

/** Whether only this machine can reach the address. */
export function isLoopback({ host }: ListenAddress): boolean {
  return host === '::1' || /^127(\.\d{1,3}){3}$/.test(host);
}

/** Host names separated by commas, in lower case; may be empty. */
export function checkHostNames(raw: unknown): Parsed<string> {
  if (typeof raw === 'string' && hostNames(raw).every((name) => /^[a-z0-9_]([a-z0-9_.-]{0,252})$/.test(name))) {
    return { value: raw };
  }
  return { problem: 'is not a list of host names', mend: 'write names separated by commas, without ports' };
}

/** The names of such a list. */
export function hostNames(list: string): string[] {
  return list
    .split(',')
    .map((name) => name.trim().toLowerCase())
    .filter((name) => name !== '');
}
