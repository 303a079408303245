import type { Command } from 'commander';
import { configReference } from '../config/reference.js';
import { ConfigInvalid, type ConfigProblem } from '../config/problems.js';
import { EXIT } from './context.js';
import { sayJson } from './json.js';
import type { Cli } from './program.js';

export function registerConfig(program: Command, cli: Cli): void {
  const config = program.command('config').description('Show and check the configuration.');
  config
    .command('reference')
    .description('Print every key with its unit and default, as markdown.')
    .action(() => cli.context.out(configReference()));
  config
    .command('check')
    .description('Read the configuration and report every problem; connects to nothing.')
    .option('--json', 'as JSON, the problems too')
    .action(({ json }: { json?: boolean }) => {
      if (json) {
        const problems = problemsOf(cli);
        sayJson(cli, { valid: problems.length === 0, problems });
        if (problems.length > 0) cli.exitCode = EXIT.usage;
        return;
      }
      cli.configuration.whole();
      cli.context.out('The configuration is valid.\n');
    });
}

function problemsOf(cli: Cli): readonly ConfigProblem[] {
  try {
    cli.configuration.whole();
    return [];
  } catch (error) {
    if (error instanceof ConfigInvalid) return error.problems;
    throw error;
  }
}
