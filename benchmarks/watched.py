"""A command of the library, watched: `python benchmarks/watched.py NOTES.json first_step train clips.csv --labels ...`.

`first_step` ends the process at the first step of a training; `phases` notes the highest memory of each phase of a run;
`end` changes nothing. The notes are seconds since the process was asked for (`STARTED` in the environment), processor
seconds, memory in MB and the imported modules. Nothing is imported here that the command does not import.
"""
import importlib
import json
import os
import resource
import sys
import time

STARTED = float(os.environ.get('STARTED') or time.time())
# what takes a phase of a run, and the phase
PHASES = (('training', 'build_model', 'network'), ('training', 'fit_run', 'training'),
          ('training', 'probabilities', 'predictions of the network'), ('training', 'fit_linear_part', 'linear part'),
          ('training', 'starting_encoder', 'encoder of simple models'),
          ('training', 'baseline_predictions', 'simple models'))


def memory():
    "Megabytes that this process holds, and the most that it has held since `forget_peak`"
    if os.path.exists('/proc/self/status'):
        with open('/proc/self/status', encoding='utf-8') as f: lines = dict(l.split(':', 1) for l in f if ':' in l)
        return tuple(int(lines[k].split()[0])/1024 for k in ('VmRSS', 'VmHWM'))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 1024)
    return peak, peak


def forget_peak():
    "Let the highest memory be that of now, on Linux"
    try:
        with open('/proc/self/clear_refs', 'w', encoding='utf-8') as f: f.write('5')
    except OSError: pass


def noted():
    "The time and the memory of now"
    now, peak = memory()
    return dict(seconds=time.time() - STARTED, processor_seconds=time.process_time(), mb=now, peak_mb=peak)


def write_notes(path, **more):
    with open(path, 'w', encoding='utf-8') as f: json.dump(dict(**more, **noted(), modules=sorted(sys.modules)), f)


def stop_at_first_step(path):
    "Write the notes and end the process when a batch is there to be trained on"
    from hiccap.learner import HICCAPLearner
    imported = noted()
    def one_batch(self, i, b):
        if not self.training: return None
        write_notes(path, imported=imported, clips=len(self.dl.dataset))
        sys.stdout.flush()
        os._exit(0)
    HICCAPLearner.one_batch = one_batch


class Phases:
    "The highest memory of each phase, of the phases around it too, and of what is between them"
    def __init__(self):
        self.found, self.open, self.whole = [], [], 0.

    def close(self):
        "Count the peak until now to all phases that are open"
        peak = memory()[1]
        self.whole = max(self.whole, peak)
        for o in self.open: o['peak_mb'] = max(o['peak_mb'], peak)
        forget_peak()

    def watch(self, module, name, label):
        module = importlib.import_module('hiccap.' + module)
        f = getattr(module, name)
        def watched(*args, **kwargs):
            self.close()
            self.found.append(dict(phase=label, before_mb=memory()[0], peak_mb=0., depth=len(self.open)))
            self.open.append(self.found[-1])
            try: return f(*args, **kwargs)
            finally:
                self.close()
                self.open.pop()['after_mb'] = memory()[0]
        setattr(module, name, watched)


def main(path, how, command, *args):
    import hiccap.cli as cli
    phases, run = Phases(), cli._in_processes
    def watched(*a):
        if how == 'first_step': stop_at_first_step(path)
        if how == 'phases':
            for o in PHASES: phases.watch(*o)
        return run(*a)
    cli._in_processes = watched
    status = getattr(cli, command)(list(args))
    phases.close()
    write_notes(path, status=status, phases=phases.found, whole_peak_mb=phases.whole)
    return status


if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
