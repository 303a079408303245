import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { checkCertificates, checkPeerCertificate } from '../../../src/app/doctor-certificates.js';
import { loadConfig } from '../../../src/config/load.js';

/** Valid until 2027-02-19T21:59:27Z; self-signed, its key is thrown away. */
const CERTIFICATE = `-----BEGIN CERTIFICATE-----
MIIBhDCCASmgAwIBAgIUYu5q59qYZVVY3VIQuzufD+FEZGwwCgYIKoZIzj0EAwIw
FzEVMBMGA1UEAwwMd2F5YmlsbC10ZXN0MB4XDTI2MTEyMTIxNTkyN1oXDTI3MDIx
OTIxNTkyN1owFzEVMBMGA1UEAwwMd2F5YmlsbC10ZXN0MFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAEUaK+3B1HLtRy8PaKZjvSApz62/o1TCn1QRKVXJT/lQkyRxMY
QEZxuKMBGJn/vETiBumJcugEqOGDFNL8RWUH56NTMFEwHQYDVR0OBBYEFEOsGXTA
1E8B8fgfLU0rlkaIG7PiMB8GA1UdIwQYMBaAFEOsGXTA1E8B8fgfLU0rlkaIG7Pi
MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSQAwRgIhAMLZxaQMxL57Y4uq
9yeNeokjBeNn0gbEgPhb0jkU/QOmAiEAkCYnDhnLA/pPafUFi4OeWoe9g6XXTGjW
HPajTxPgRO4=
-----END CERTIFICATE-----
`;

const folder = mkdtempSync(join(tmpdir(), 'waybill-certificates-'));
afterAll(() => rmSync(folder, { recursive: true }));

function check(content: string | undefined, now: string) {
  const caFile = join(folder, 'ca.pem');
  if (content === undefined) rmSync(caFile, { force: true });
  else writeFileSync(caFile, content);
  const text = `database: { url: "postgres://localhost/a", tls: { mode: verify-full, caFile: "${caFile}" } }\nbroker: { url: "amqp://localhost" }`;
  const config = loadConfig({ file: { name: 'f', text }, environment: {}, readFile: () => '' });
  return checkCertificates(config, new Date(now));
}

describe('F85 certificate files', () => {
  it.each([
    ['is valid', CERTIFICATE, '2027-02-04T21:59:27Z', 'ok'],
    ['ends within 14 days', CERTIFICATE, '2027-02-06T21:59:27Z', 'warn'],
    ['has expired', CERTIFICATE, '2027-02-20T21:59:27Z', 'fail'],
    ['is a bundle, and one of it has expired', CERTIFICATE + CERTIFICATE, '2027-02-20T21:59:27Z', 'fail'],
    ['holds no certificate', 'text', '2027-02-19T21:59:27Z', 'fail'],
    ['holds a broken certificate', CERTIFICATE.replace('\nMII', '\nAAA'), '2027-02-19T21:59:27Z', 'fail'],
    ['is not there', undefined, '2027-02-19T21:59:27Z', 'fail'],
  ])('one that %s', (_, content, now, severity) => {
    expect(check(content, now)).toMatchObject([{ id: 'certificates', severity }]);
  });
});

describe('F85 the certificate that a server shows', () => {
  it.each([
    ['2026-01-01T00:00:00Z', 'fail'],
    ['2026-02-09T00:00:00Z', 'warn'],
    ['2026-06-01T00:00:00Z', 'ok'],
  ])('that ends %s: %s', (end, severity) => {
    const finding = checkPeerCertificate('RabbitMQ', new Date(end), new Date('2026-02-01T00:00:00Z'));
    expect(finding).toMatchObject({ id: 'server-certificates', severity });
  });
});
