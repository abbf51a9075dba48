// Cross (Nyström) approximations W ≈ C N R in double precision: the arithmetic of `nl.nystrom` for one matrix.
// A matrix is { m, n, a }: m rows, n columns, and its entries row by row in a Float64Array.

const EPS64 = 2 ** -52;

const zeros = (m, n) => ({ m, n, a: new Float64Array(m * n) });

function multiply(A, B) {
  const C = zeros(A.m, B.n);
  for (let i = 0; i < A.m; i += 1)
    for (let k = 0; k < A.n; k += 1) {
      const x = A.a[i * A.n + k];
      if (x === 0) continue;
      for (let j = 0, from = k * B.n, to = i * B.n; j < B.n; j += 1) C.a[to + j] += x * B.a[from + j];
    }
  return C;
}

function transpose(A) {
  const T = zeros(A.n, A.m);
  for (let i = 0; i < A.m; i += 1) for (let j = 0; j < A.n; j += 1) T.a[j * A.m + i] = A.a[i * A.n + j];
  return T;
}

function take(W, rows, cols) {
  const B = zeros(rows ? rows.length : W.m, cols ? cols.length : W.n);
  for (let i = 0; i < B.m; i += 1) {
    const from = (rows ? rows[i] : i) * W.n;
    for (let j = 0; j < B.n; j += 1) B.a[i * B.n + j] = W.a[from + (cols ? cols[j] : j)];
  }
  return B;
}

function subtract(A, B) {
  const C = zeros(A.m, A.n);
  for (let i = 0; i < A.a.length; i += 1) C.a[i] = A.a[i] - B.a[i];
  return C;
}

function norm(A) {
  let sum = 0;
  for (const x of A.a) sum += x * x;
  return Math.sqrt(sum);
}

/** A = Q T by Gram–Schmidt done twice: Q (m, r) with orthonormal columns, T (r, r) upper triangular. */
function qr(A) {
  const columns = transpose(A);
  const { m: r, n: m } = columns;
  const T = zeros(r, r);
  for (let j = 0; j < r; j += 1) {
    const q = columns.a.subarray(j * m, (j + 1) * m);
    for (let pass = 0; pass < 2; pass += 1)
      for (let k = 0; k < j; k += 1) {
        const p = columns.a.subarray(k * m, (k + 1) * m);
        let dot = 0;
        for (let i = 0; i < m; i += 1) dot += p[i] * q[i];
        for (let i = 0; i < m; i += 1) q[i] -= dot * p[i];
        T.a[k * r + j] += dot;
      }
    const length = Math.hypot(...q);
    T.a[j * r + j] = length;
    if (length > 0) for (let i = 0; i < m; i += 1) q[i] /= length;
  }
  return { Q: transpose(columns), T };
}

/** The inverse of an upper triangle. An entry is infinite or not a number where the triangle is singular. */
function invertTriangle(T) {
  const r = T.m;
  const X = zeros(r, r);
  for (let j = 0; j < r; j += 1) {
    X.a[j * r + j] = 1 / T.a[j * r + j];
    for (let i = j - 1; i >= 0; i -= 1) {
      let sum = 0;
      for (let k = i + 1; k <= j; k += 1) sum += T.a[i * r + k] * X.a[k * r + j];
      X.a[i * r + j] = -sum / T.a[i * r + i];
    }
  }
  return X;
}

/** The singular values of A (q, r), q >= r, with U and V: one-sided Jacobi rotations. Rows of `left` are σ_k u_k. */
function jacobi(A) {
  const left = transpose(A);
  const { m: r, n: q } = left;
  const V = zeros(r, r);
  for (let i = 0; i < r; i += 1) V.a[i * r + i] = 1;
  const rotate = (x, i, j, size, c, s) => {
    for (let k = 0, a = i * size, b = j * size; k < size; k += 1, a += 1, b += 1) {
      const [y, z] = [x[a], x[b]];
      x[a] = c * y - s * z;
      x[b] = s * y + c * z;
    }
  };
  for (let sweep = 0, turned = true; turned && sweep < 60; sweep += 1) {
    turned = false;
    for (let i = 0; i < r - 1; i += 1)
      for (let j = i + 1; j < r; j += 1) {
        let [p, a, b] = [0, 0, 0];
        for (let k = 0, x = i * q, y = j * q; k < q; k += 1, x += 1, y += 1) {
          p += left.a[x] * left.a[y];
          a += left.a[x] * left.a[x];
          b += left.a[y] * left.a[y];
        }
        if (Math.abs(p) <= 1e-15 * Math.sqrt(a * b) || p === 0) continue;
        turned = true;
        const zeta = (b - a) / (2 * p);
        const t = Math.sign(zeta || 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
        const c = 1 / Math.hypot(1, t);
        rotate(left.a, i, j, q, c, c * t);
        rotate(V.a, i, j, r, c, c * t);
      }
  }
  const sigma = Array.from({ length: r }, (_, i) => Math.hypot(...left.a.subarray(i * q, (i + 1) * q)));
  return { sigma, left, V };
}

/** The pseudo-inverse of a block (q, r), q >= r. Singular values of at most `cut` times the largest count as zero. */
function pseudoInverse(A, cut) {
  const { Q, T } = qr(A);
  const X = invertTriangle(T);
  if (norm(T) * norm(X) * Math.max(cut, EPS64) < 1) return multiply(X, transpose(Q));
  const { sigma, left, V } = jacobi(T);
  const least = Math.max(cut, EPS64 * Math.max(A.m, A.n)) * Math.max(...sigma);
  const P = zeros(A.n, A.n); // T⁺
  sigma.forEach((s, k) => {
    if (!(s > least)) return;
    for (let i = 0; i < A.n; i += 1)
      for (let j = 0; j < A.n; j += 1) P.a[i * A.n + j] += (V.a[k * A.n + i] * left.a[k * A.n + j]) / (s * s);
  });
  return multiply(P, transpose(Q));
}

/** Condition number of a block. */
function conditionOf(block) {
  const { sigma } = jacobi(block.m >= block.n ? block : transpose(block));
  const least = Math.min(...sigma);
  return least > 0 ? Math.max(...sigma) / least : Infinity;
}

// --- rows and columns ---

const count = (n) => Array.from({ length: n }, (_, i) => i);
const fill = (chosen, size, rank) => [...chosen, ...count(size).filter((i) => !chosen.includes(i))].slice(0, rank);

function largest(values, from, to) {
  let best = from;
  for (let i = from; i < to; i += 1) if (Math.abs(values[i]) > Math.abs(values[best])) best = i;
  return best;
}

/** One step of Gaussian elimination of S on the entry (i, j), whose row and column become zero. */
function eliminate(S, i, j) {
  const row = S.a.slice(i * S.n, (i + 1) * S.n);
  const pivot = row[j];
  for (let k = 0; k < S.m; k += 1) {
    const x = S.a[k * S.n + j] / pivot;
    for (let l = 0, at = k * S.n; l < S.n && x !== 0; l += 1) S.a[at + l] -= x * row[l];
    S.a[k * S.n + j] = 0;
  }
  S.a.fill(0, i * S.n, (i + 1) * S.n);
}

function completePivoting(W, rank) {
  const S = { ...W, a: W.a.slice() };
  const [rows, cols] = [[], []];
  for (let k = 0; k < rank; k += 1) {
    const at = largest(S.a, 0, S.a.length);
    if (S.a[at] === 0) break;
    const [i, j] = [Math.floor(at / S.n), at % S.n];
    rows.push(i);
    cols.push(j);
    eliminate(S, i, j);
  }
  return [fill(rows, W.m, rank), fill(cols, W.n, rank)];
}

function qrPivoting(W, rank) {
  const rest = transpose(W); // one row per column of W
  const { m: n, n: m } = rest;
  const lengths = (j) => Math.hypot(...rest.a.subarray(j * m, (j + 1) * m));
  const whole = count(n).map(lengths);
  const cols = [];
  for (let k = 0; k < rank; k += 1) {
    const now = count(n).map((j) => (cols.includes(j) ? -1 : lengths(j)));
    const j = now.reduce((best, length, i) => (length > now[best] ? i : best), 0);
    if (now[j] <= 4 * EPS64 * whole[j] || now[j] <= 0) break;
    const q = rest.a.slice(j * m, (j + 1) * m).map((x) => x / now[j]);
    for (let i = 0; i < n; i += 1) {
      let dot = 0;
      for (let l = 0; l < m; l += 1) dot += q[l] * rest.a[i * m + l];
      for (let l = 0; l < m; l += 1) rest.a[i * m + l] -= dot * q[l];
    }
    cols.push(j);
  }
  const block = take(W, null, cols);
  const rows = [];
  for (let k = 0; k < cols.length; k += 1) {
    const column = take(block, null, [k]).a;
    const i = largest(column, 0, W.m);
    if (column[i] === 0) break;
    rows.push(i);
    eliminate(block, i, k);
  }
  return [fill(rows, W.m, rank), fill(cols.slice(0, rows.length), W.n, rank)];
}

/** The pivots of the largest rank, of which every lower rank takes the first ones. `random` is the kernel's draw. */
function choosePivots(W, rank, pivots, random) {
  if (pivots === "leading") return [count(W.m), count(W.n)];
  if (pivots === "random") return random;
  return pivots === "cross" ? completePivoting(W, rank) : qrPivoting(W, rank);
}

/** The extra rows of each rank: the next ones in order, or those on which the approximation of that rank is worst. */
function extraRows(W, [rows, cols], pivots, extra, rank) {
  if (!extra) return () => [];
  if (pivots === "leading" || pivots === "random") return (k) => rows.slice(k, k + extra);
  const S = { ...W, a: W.a.slice() };
  const noise = EPS64 * Math.max(W.m, W.n) * Math.abs(S.a[largest(S.a, 0, S.a.length)]);
  const chosen = count(rank).map((k) => {
    if (Math.abs(S.a[rows[k] * S.n + cols[k]]) > noise) eliminate(S, rows[k], cols[k]);
    const before = new Set(rows.slice(0, k + 1));
    const size = count(W.m).map((i) => (before.has(i) ? -1 : Math.hypot(...S.a.subarray(i * S.n, (i + 1) * S.n))));
    return count(W.m).sort((a, b) => size[b] - size[a]).slice(0, extra);
  });
  return (k) => chosen[k - 1];
}

// --- the approximation ---

/** What `nl.nystrom(W, …)` gives at every rank. `rtol` 0 means the default, `eps` is that of the matrix's dtype. */
class Nystrom {
  constructor(W, { pivots, core, rtol = 0, oversample = 0, maxRank, random, eps = EPS64 }) {
    Object.assign(this, { W, core, rtol, eps, maxRank, total: norm(W) });
    this.order = choosePivots(W, maxRank, pivots, random);
    this.extra = extraRows(W, this.order, pivots, core === "block" ? 0 : oversample, maxRank);
    this.errors = new Float64Array(maxRank).fill(NaN);
    if (core === "pinv" && !(oversample > 0)) this.eliminateAll();
    if (core === "optimal" && !(oversample > 0)) this.projectAll();
  }

  rowsAndColumns(rank) {
    return [[...this.order[0].slice(0, rank), ...this.extra(rank)], this.order[1].slice(0, rank)];
  }

  block(rank) {
    return take(this.W, ...this.rowsAndColumns(rank));
  }

  /** C N R at one rank. */
  product(rank) {
    const [rows, cols] = this.rowsAndColumns(rank);
    const [C, R] = [take(this.W, null, cols), take(this.W, rows, null)];
    const cut = (size) => this.rtol || this.eps * size;
    if (this.core === "block") return multiply(multiply(C, take(R, null, cols)), R);
    if (this.core === "pinv") return multiply(multiply(C, pseudoInverse(take(R, null, cols), cut(rows.length))), R);
    const far = cut(Math.max(this.W.m, this.W.n));
    const [left, right] = [multiply(C, pseudoInverse(C, far)), this.projector(transpose(R), far)];
    return multiply(multiply(left, this.W), right);
  }

  /** The orthogonal projector onto the range of a tall or wide matrix. */
  projector(A, cut) {
    if (A.m >= A.n) return multiply(A, pseudoInverse(A, cut));
    const P = pseudoInverse(transpose(A), cut); // A has more columns than rows
    return multiply(A, transpose(P));
  }

  residual(rank) {
    return subtract(this.W, this.product(rank));
  }

  /** The relative error at one rank, computed when it is first asked for. */
  error(rank) {
    if (Number.isNaN(this.errors[rank - 1])) this.errors[rank - 1] = norm(this.residual(rank)) / this.total;
    return this.errors[rank - 1];
  }

  /** The errors of the core A⁺ by one elimination, at the ranks whose block is far from singular. */
  eliminateAll() {
    const [rows, cols] = this.order;
    const S = { ...this.W, a: this.W.a.slice() };
    let inverse = zeros(0, 0);
    let growth = this.total;
    for (let k = 1; k <= this.maxRank; k += 1) {
      const pivot = S.a[rows[k - 1] * S.n + cols[k - 1]];
      if (!(Math.abs(pivot) > 1e-12 * this.total)) return;
      inverse = bordered(inverse, this.block(k), pivot);
      eliminate(S, rows[k - 1], cols[k - 1]);
      const left = norm(S);
      growth = Math.max(growth, left);
      const cut = Math.max(this.rtol || this.eps * k, 1e-12);
      const regular = norm(this.block(k)) * norm(inverse) * cut < 1;
      if (regular && left > 1e-6 * this.total && left > 1e-9 * growth) this.errors[k - 1] = left / this.total;
    }
  }

  /** The errors of the optimal core in nested orthonormal bases, at the ranks whose rows and columns are independent. */
  projectAll() {
    const [rows, cols] = this.order.map((order) => order.slice(0, this.maxRank));
    const [c, r] = [qr(take(this.W, null, cols)), qr(transpose(take(this.W, rows, null)))];
    const M = multiply(transpose(c.Q), multiply(this.W, r.Q));
    const cut = this.rtol || this.eps * Math.max(this.W.m, this.W.n);
    const [ok, okToo] = [wellConditioned(c.T, cut), wellConditioned(r.T, cut)];
    let kept = 0;
    for (let k = 0; k < this.maxRank; k += 1) {
      for (let i = 0; i <= k; i += 1) kept += M.a[i * M.n + k] ** 2 + (i < k ? M.a[k * M.n + i] ** 2 : 0);
      const square = this.total ** 2 - kept;
      if (ok[k] && okToo[k] && square > 1e-9 * this.total ** 2) this.errors[k] = Math.sqrt(square) / this.total;
    }
  }
}

/** The inverse of a block (k, k) from that of its leading block (k − 1, k − 1) and the pivot of the elimination. */
function bordered(inverse, A, pivot) {
  const k = A.n;
  const [row, column] = [new Float64Array(k - 1), new Float64Array(k - 1)];
  for (let i = 0; i < k - 1; i += 1)
    for (let j = 0; j < k - 1; j += 1) {
      column[i] += inverse.a[i * (k - 1) + j] * A.a[j * k + k - 1];
      row[j] += A.a[(k - 1) * k + i] * inverse.a[i * (k - 1) + j];
    }
  const next = zeros(k, k);
  for (let i = 0; i < k - 1; i += 1) {
    for (let j = 0; j < k - 1; j += 1) next.a[i * k + j] = inverse.a[i * (k - 1) + j] + (column[i] * row[j]) / pivot;
    next.a[i * k + k - 1] = -column[i] / pivot;
    next.a[(k - 1) * k + i] = -row[i] / pivot;
  }
  next.a[k * k - 1] = 1 / pivot;
  return next;
}

/** For each leading block of a triangle, whether no singular value is below `cut` times the largest. */
function wellConditioned(T, cut) {
  const X = invertTriangle(T);
  let [direct, inverse] = [0, 0];
  return count(T.m).map((k) => {
    for (let i = 0; i <= k; i += 1) {
      direct += T.a[i * T.n + k] ** 2;
      inverse += X.a[i * T.n + k] ** 2;
    }
    return Math.sqrt(direct * inverse) * Math.max(cut, EPS64) < 1;
  });
}
