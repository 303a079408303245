import { keys, type Key } from './keys.js';

/** Every key as a markdown table, made from the schema; deploy/configuration.md holds it and a test compares the two. */
export function configReference(): string {
  const rows = keys.map((key) => `| \`${key.name}\` | ${valueCell(key)} | ${defaultCell(key)} | ${key.doc} |`);
  const lines = [
    '# Configuration',
    '',
    'One file, YAML or JSON, named by `--config` or `WAYBILL_CONFIG`; without a file, the two URLs in the environment are',
    'enough. Every key can also be given by the environment: `relay.maxInFlight` is `WAYBILL_RELAY_MAX_IN_FLIGHT`, and',
    'the environment goes before the file. `<NAME>_FILE` reads the value from a file instead (for secrets); giving both',
    'is an error, and an empty variable counts as not set. Commands and lists in the environment are JSON arrays. Durations and',
    'sizes need their unit. `waybill run` reports every problem at once and never prints a password.',
    '',
    'A consumer begins in the file; its keys can then be given by the environment: for `consumers.billing-eu` the key',
    '`retry.maxAge` is `WAYBILL_CONSUMERS_BILLING_EU_RETRY_MAX_AGE`. `WAYBILL_OPERATOR` is no key: who you are, for the log of',
    "operators' acts.",
    '',
    'The file, the files behind `<NAME>_FILE` and those of `tls` are read again at each connection, so a rotated password',
    'needs no restart; of everything else `SIGHUP` takes up `log.level`, and the rest needs a restart. A new configuration',
    'that is wrong is logged, and the old one stays.',
    '',
    '| Key | Value | Default | What it does |',
    '|---|---|---|---|',
    ...rows,
    '',
  ];
  return lines.join('\n');
}

function valueCell({ kind, values }: Key): string {
  switch (kind) {
    case 'duration':
    case 'size':
    case 'integer':
      return `${kind}, ${values}`;
    case 'choice':
      return values
        .split(', ')
        .map((value) => `\`${value}\``)
        .join(', ');
    default:
      return `\`${values}\``;
  }
}

function defaultCell(key: Key): string {
  if (key.required) return key.path.includes('handler') ? '**required** for `http`' : '**required**';
  if (key.default === undefined) return '';
  return key.default.includes(' ') ? key.default : `\`${key.default}\``;
}
