import tseslint from 'typescript-eslint';

// The rooms of the house and what each may import. Imports go one way:
// main -> cli -> app -> pipelines -> core; adapters -> core; core -> nothing.
const rooms = 'cli app config core postgres rabbitmq outbox inbox admin client runtime telemetry'.split(' ');
const mayImport = {
  core: [],
  runtime: ['core'],
  telemetry: ['core'],
  config: ['core'],
  postgres: ['core', 'runtime', 'telemetry'],
  rabbitmq: ['core', 'runtime', 'telemetry'],
  outbox: ['core', 'runtime', 'telemetry'],
  inbox: ['core', 'runtime', 'telemetry'],
  admin: ['core', 'runtime', 'telemetry'],
  client: ['core', 'runtime'],
  app: rooms,
  cli: ['app', 'config', 'core', 'telemetry', 'runtime'],
};
const adapterPackages = { postgres: ['pg', 'pg-logical-replication'], rabbitmq: ['amqplib'] };

const importRules = Object.entries(mayImport).map(([room, allowed]) => ({
  files: [`src/${room}/**/*.ts`],
  rules: {
    'no-restricted-imports': [
      'error',
      {
        paths: Object.entries(adapterPackages)
          .filter(([owner]) => owner !== room)
          .flatMap(([owner, packages]) =>
            packages.map((name) => ({ name, message: `Only src/${owner} imports ${name}.` })),
          ),
        patterns: rooms
          .filter((other) => other !== room && !allowed.includes(other))
          .map((other) => ({ group: [`**/${other}/*.js`], message: `src/${room} may not import src/${other}.` })),
      },
    ],
  },
}));

export default tseslint.config(
  { ignores: ['dist', 'node_modules'] },
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      '@typescript-eslint/no-floating-promises': ['error', { ignoreVoid: false }],
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      '@typescript-eslint/no-unnecessary-condition': ['error', { allowConstantLoopConditions: true }],
      'no-console': 'error',
    },
  },
  ...importRules,
  {
    files: ['src/core/**/*.ts', 'src/outbox/**/*.ts', 'src/inbox/**/*.ts', 'src/client/**/*.ts'],
    rules: {
      'no-restricted-globals': [
        'error',
        ...['setTimeout', 'setInterval', 'setImmediate', 'process', 'performance'].map((name) => ({
          name,
          message: 'Timers, clocks and the process belong to src/runtime and src/main.ts.',
        })),
      ],
      'no-restricted-properties': [
        'error',
        { object: 'Math', property: 'random', message: 'Randomness is passed in.' },
        { object: 'Date', property: 'now', message: 'Clocks belong to src/runtime.' },
      ],
    },
  },
  {
    files: ['test/**/*.ts', 'deploy/**/*.ts'],
    rules: { 'no-console': 'off', '@typescript-eslint/no-non-null-assertion': 'off' },
  },
  { files: ['*.config.js', 'deploy/**/*.mjs', 'test/**/*.mjs'], ...tseslint.configs.disableTypeChecked },
);
