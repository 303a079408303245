import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Config } from '../config/load.js';
import { fail, ok, warn, type Finding } from './doctor-findings.js';

const SOON_MS = 14 * 86_400_000;

/** Looks at the certificate files of both sides; a bundle counts by the certificate that ends first. */
export function checkCertificates({ database, broker }: Config, now: Date): Finding[] {
  const files = [database.tls.caFile, database.tls.certFile, broker.tls.caFile, broker.tls.certFile];
  const given = new Set(files.filter((file) => file !== undefined));
  return [...given].map((file) => checkFile(file, now));
}

/** The certificate that a server shows. */
export function checkPeerCertificate(what: string, end: Date, now: Date): Finding {
  const id = 'server-certificates';
  const day = end.toISOString().slice(0, 10);
  const mend = 'renew it on the server';
  if (end <= now) return fail(id, `the certificate of ${what} has expired on ${day}`, mend);
  if (end.getTime() - now.getTime() < SOON_MS) return warn(id, `the certificate of ${what} expires on ${day}`, mend);
  return ok(id, `the certificate of ${what} is valid until ${day}`);
}

function checkFile(file: string, now: Date): Finding {
  const id = 'certificates';
  let ends: number;
  try {
    const pem = readFileSync(file, 'utf8').match(/-----BEGIN CERTIFICATE-----[\s\S]*?-----END CERTIFICATE-----/g);
    ends = Math.min(...(pem ?? []).map((text) => Date.parse(new X509Certificate(text).validTo)));
    if (!Number.isFinite(ends)) return fail(id, `${file} holds no certificate`, 'give a PEM file');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unreadable';
    return fail(
      id,
      `${file} cannot be read as a certificate (${code})`,
      'check the path, its rights and that it is PEM',
    );
  }
  const day = new Date(ends).toISOString().slice(0, 10);
  if (ends <= now.getTime())
    return fail(id, `${file} has expired on ${day}`, 'renew it; it is read at each connection');
  if (ends - now.getTime() < SOON_MS)
    return warn(id, `${file} expires on ${day}`, 'renew it; it is read at each connection');
  return ok(id, `${file} is valid until ${day}`);
}
