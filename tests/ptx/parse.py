"""PTX text to kernels: parameters, registers, labels and a list of instructions."""

from __future__ import annotations

import re

import numpy as np

from tests.ptx.types import U8, PtxError, T


class Ins:
    __slots__ = ("pred", "neg", "op", "parts", "args", "line", "loc", "fn", "text")


def split_args(s):
    out, d, cur = [], 0, ""
    for ch in s:
        if ch in "{[(":
            d += 1
        if ch in "}])":
            d -= 1
        if ch == "," and d == 0:
            out.append(cur.strip())
            cur = ""
        else:
            cur += ch
    if cur.strip():
        out.append(cur.strip())
    return out


class Kernel:
    pass


class Module:
    def __init__(self, text):
        self.shared, self.consts, self.kernels, self.version = {}, {}, {}, re.search(r"\.version\s+(\S+)", text)[1]
        text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
        lines = text.split("\n")
        self.lines = lines
        clean = "\n".join(re.sub(r"//.*", "", l) for l in lines)
        for m in re.finditer(r"\.(?:visible\s+)?entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{", clean, re.S):
            k = Kernel()
            k.name = m[1]
            k.params = {}
            off = 0
            for p in split_args(m[2]):
                a = re.search(r"\.align\s+(\d+)", p)
                q = re.search(r"\.(\w+)\s+(?:\.ptr\s*(?:\.\w+\s*)*(?:\.align\s+\d+\s*)?)?([\w$]+)(?:\[(\d+)\])?\s*$", p)
                ty = re.search(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)", p)[1]
                n = T[ty]().itemsize * int(q[3] or 1)
                al = int(a[1]) if a and "[" in p else T[ty]().itemsize
                off = -(-off // al) * al
                k.params[q[2]] = (off, n)
                off += n
            k.nparam = off
            d = 1
            i = m.end()
            while d:
                d += {"{": 1, "}": -1}.get(clean[i], 0)
                i += 1
            k.maxntid = re.search(r"\.(?:maxntid|reqntid)\s+([\d, ]+)", m[3])
            k.body, k.line0 = clean[m.end() : i - 1], clean[: m.end()].count("\n") + 1
            self.kernels[k.name] = k
        for m in re.finditer(
            r"\.(shared|global|const)\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?(?:\s*=\s*\{([^}]*)\})?",
            re.sub(r"(?s)\.entry.*?\)\s*(?:\.\w+[^{]*)?\{.*?\n\}", "", clean),
        ):
            n = T[m[3]]().itemsize * int(m[5] or 0 if m[5] is not None else 1)
            if m[1] == "shared":
                self.shared[m[4]] = (int(m[2]), n)
            else:
                self.consts[m[4]] = (
                    np.array([int(x, 0) & 255 for x in m[6].split(",")], U8) if m[6] else np.zeros(n, U8)
                )

    def compile(self, k):
        k.code, k.labels, k.regs, k.shared = [], {}, {}, dict(self.shared)
        scopes, loc, sid, line = [{}], None, 0, k.line0
        for tok in re.findall(r"[^;{}]*(?:\{[^{};]*\}[^;{}]*)*;|[{}]|[^;{}]+", k.body):
            nl = tok.count("\n")
            t = tok.strip()
            cur = line + (len(tok) - len(tok.lstrip())) * 0 + tok[: len(tok) - len(tok.lstrip())].count("\n")
            line += nl
            while True:
                m = re.match(r"([$\w%]+):\s*", t)
                if m and "::" not in t[: m.end() + 1]:
                    k.labels[m[1]] = len(k.code)
                    t = t[m.end() :]
                    continue
                m = re.match(r"\.loc\s+(\d+\s+\d+\s+\d+)(?:[^\n]*)\n?", t)
                if m:
                    loc = m[1]
                    t = t[m.end() :].lstrip()
                    continue
                m = re.match(r"\.(pragma|file|callprototype|section)[^\n]*\n?", t)
                if m and not t.endswith(";"):
                    t = t[m.end() :].lstrip()
                    continue
                break
            if t == "{":
                scopes.append({})
                sid += 1
                continue
            if t == "}":
                scopes.pop()
                continue
            if t.startswith("{") and t.endswith("}"):
                t = t[1:-1].strip()
            if not t or t == ";" or t.startswith(".pragma"):
                continue
            t = t.rstrip(";").strip()
            if t.startswith(".reg"):
                m = re.match(r"\.reg\s+\.(\w+)\s+(.*)", t, re.S)
                for n in m[2].split(","):
                    n = n.strip()
                    q = re.match(r"(\S+)<(\d+)>", n)
                    if q:
                        k.regs.update({f"{q[1]}{i}": m[1] for i in range(int(q[2]))})
                    else:
                        u = n if len(scopes) == 1 else f"{n}@{sid}"
                        scopes[-1][n] = u
                        k.regs[u] = m[1]
                continue
            if t.startswith(".shared") or t.startswith(".local"):
                m = re.match(r"\.(shared|local)\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", t)
                if m[1] == "local":
                    raise PtxError("local memory is not modelled: " + t)
                k.shared[m[4]] = (int(m[2]), T[m[3]]().itemsize * int(m[5] or 1))
                continue
            ren = {}
            [ren.update(s) for s in scopes]
            if len(scopes) > 1:
                t = re.sub(r"(?<![\w%$.])(%?[A-Za-z_]\w*)(?![\w.(])", lambda m, ren=ren: ren.get(m[1], m[1]), t)
            i = Ins()
            i.line, i.loc, i.text = cur, loc, " ".join(t.split())
            m = re.match(r"@(!?)([\w%@]+)\s+", t)
            i.pred, i.neg = (m[2], bool(m[1])) if m else (None, False)
            t = t[m.end() :] if m else t
            op, _, rest = t.replace("\n", " ").replace("\t", " ").partition(" ")
            i.op = op
            i.parts = op.split(".")
            i.args = split_args(rest)
            k.code.append(i)
        k.ready = True
